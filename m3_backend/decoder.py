"""The language model over a flat batch: tokens of many requests in one row, without padding.

The layers are transformers' own; the way through them is ours, because theirs wants a rectangle.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn.functional import pad
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from m3_backend.kv_cache import Plan, TokenCache


class Decoder:
    """A Llama whose keys and values are in a TokenCache."""

    def __init__(self, model: LlamaForCausalLM, cache: TokenCache) -> None:
        decoder: Any = model.model
        self._layers, self._norm = list(decoder.layers), decoder.norm
        self._embed, self._rotary, self._head = (
            decoder.embed_tokens,
            decoder.rotary_emb,
            model.lm_head,
        )
        self._size = int(self._layers[0].self_attn.head_dim)
        self._cache = cache

    def embed(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self._embed(tokens))

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., vocabulary]."""
        return cast(Tensor, self._head(hidden)).float()

    def forward(self, batch: Tensor, plan: Plan, *, last_only: bool) -> Tensor:
        """Hidden states [tokens, hidden] of a batch of embeddings [tokens, hidden].

        Args:
            last_only: of every span's last token alone [spans, hidden]. The last layer is then
                computed for these only; of the others it needs keys and values.
        """
        if padding := len(plan.rows) - plan.tokens:
            batch = pad(batch, (0, 0, 0, padding))
        cos, sin = self._rotary(batch, plan.positions[None])
        for index, layer in enumerate(self._layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(batch)
            queries, keys, values = (
                projection(normed).unflatten(-1, (-1, self._size))
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            turned = apply_rotary_pos_emb(queries[None], keys[None], cos, sin, unsqueeze_dim=2)
            queries, keys = turned[0][0], turned[1][0]
            self._cache.write(index, plan.rows, keys, values)
            if last_only and index == len(self._layers) - 1:
                batch = batch[plan.last]
                seen = self._cache.attend_last(index, plan, queries[plan.last])
            else:
                seen = self._cache.attend(index, plan, queries, keys, values)
            batch = batch + attention.o_proj(seen.flatten(1))
            batch = batch + layer.mlp(layer.post_attention_layernorm(batch))
        hidden = cast(Tensor, self._norm(batch))
        return hidden if last_only else hidden[: plan.tokens]
