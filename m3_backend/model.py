"""The network of a LLaVA checkpoint: vision tower → projector → language model."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from m3_backend import attention


class Projector(nn.Module):
    """Two linear layers from the vision tower's width to the language model's."""

    def __init__(self, vision_width: int, text_width: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        self.activation = ACT2FN[activation]
        self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.linear_2(self.activation(self.linear_1(hidden))))


class M3Model(nn.Module):
    """Built on the meta device, filled by `weights.load_weights`, whose canonical names these are.

    Args:
        vision: its `num_hidden_layers` is the number of layers that are *used*: the feature layer
            is the last one, so what a checkpoint has beyond it is neither loaded nor computed.
        newline: whether rows of tiles end in a learned embedding (LLaVA-NeXT).
    """

    def __init__(
        self,
        vision: CLIPVisionConfig,
        text: LlamaConfig,
        *,
        projector_activation: str = "gelu",
        projector_bias: bool = True,
        newline: bool = False,
    ) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(vision)
        # Only the pooled output, which nothing here reads, would need this one.
        self.vision_tower.register_module("post_layernorm", nn.Identity())
        self.projector = Projector(
            vision.hidden_size, text.hidden_size, projector_activation, projector_bias
        )
        self.language_model = LlamaForCausalLM(text)
        self.image_newline = nn.Parameter(torch.empty(text.hidden_size)) if newline else None

    def restore_buffers(self, device: torch.device) -> None:
        """Compute what no checkpoint stores, after the weights replaced the meta tensors."""
        embeddings = self.vision_tower.embeddings
        positions = torch.arange(embeddings.num_positions, device=device).expand(1, -1)
        embeddings.register_buffer("position_ids", positions, persistent=False)
        decoder = self.language_model.model
        decoder.rotary_emb = LlamaRotaryEmbedding(decoder.config).to(device)

    def choose_attention(self) -> None:
        """What is quickest for the vision tower's weights, where they are now."""
        weight = self.projector.linear_1.weight
        if attention.is_quicker(weight.dtype, weight.device):
            self.vision_tower.set_attn_implementation(attention.register())

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [tiles, 3, side, side] → projected patch features [tiles, grid², hidden]."""
        hidden = self.vision_tower(pixels).last_hidden_state[:, 1:]  # without the class token
        return cast(Tensor, self.projector(hidden))
