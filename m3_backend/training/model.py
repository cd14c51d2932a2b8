"""m3-tiny as a module: a CLIP tower, LLaVA's projector and a Llama; and how to save it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from m3_backend.scales import M3_GRID_SIDE, M3_SCALES
from m3_backend.training.recipe import PATCH, Architecture
from m3_backend.training.tokenizer import IMAGE_TOKEN, build_tokenizer
from m3_backend.training.worlds.canvas import (
    CLASSES,
    MOST_COLUMNS,
    MOST_ORDER,
    NO_COLOUR,
    ROWS,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Where inside a patch the dense labels are read: small print packs two or three glyphs into it.
LABEL_ROWS, LABEL_COLUMNS = 2, 4
COLOUR_POINTS = 4

_PERIODS = (0.5, 1, 2, 4)  # of the waves that tell a place, across the grid
_PLACES = 2 * (1 + 2 * len(_PERIODS))

SHIPPED = Path(__file__).parent.parent / "checkpoints" / "m3-tiny"
DENSE_HEADS = "dense_heads.safetensors"  # beside a checkpoint, for those who train it further


@dataclass(frozen=True)
class DenseLogits:
    """Float [batch, patches, points, kinds] each; kinds as in worlds.canvas.Labels."""

    classes: Tensor
    colours: Tensor
    orders: Tensor
    rows: Tensor
    columns: Tensor


class TinyLlava(nn.Module):
    """A LLaVA-shaped model with dense heads for the vision tower's own training.

    Args:
        architecture: sizes.
        tokenizer: decides the special token ids of the config.
    """

    def __init__(self, architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.config = _config(architecture, tokenizer)
        self.llava = LlavaForConditionalGeneration(self.config)
        width = architecture.vision_width
        self.class_head = nn.Linear(width, LABEL_ROWS * LABEL_COLUMNS * len(CLASSES))
        self.colour_head = nn.Linear(width, COLOUR_POINTS * NO_COLOUR)
        self.order_head = nn.Linear(width, LABEL_ROWS * LABEL_COLUMNS * (MOST_ORDER + 1))
        self.row_head = nn.Linear(width, COLOUR_POINTS * len(ROWS))
        self.column_head = nn.Linear(width, COLOUR_POINTS * (MOST_COLUMNS + 1))
        self.place_head = nn.Linear(width, _PLACES)
        _initialise_vision(self.vision)
        self.places: Tensor
        self.register_buffer("places", _places(), persistent=False)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1) * 255, persistent=False)

    # transformers' modules are untyped, hence Any.

    @property
    def vision(self) -> Any:
        return self.llava.model.vision_tower

    @property
    def projector(self) -> Any:
        return self.llava.model.multi_modal_projector

    @property
    def language(self) -> Any:
        return self.llava.model.language_model

    def patches(self, pixels: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
        """Patch features of a batch of pictures.

        Args:
            pixels: uint8 [batch, side, side, 3].
            corner: (row, column) of the position table's window to use. A picture smaller than the
                grid then looks, to the tower, like part of a full one: neighbours stay neighbours.

        Returns:
            [batch, (side / 14)², vision width].
        """
        tower = self.vision
        x = (pixels.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        grid = tower.embeddings.patch_embedding(x)
        batch, width, rows, columns = grid.shape
        table = tower.embeddings.position_embedding.weight
        window = table[1:].view(M3_GRID_SIDE, M3_GRID_SIDE, width)
        window = window[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        tokens = grid.flatten(2).transpose(1, 2) + window.reshape(rows * columns, width)
        cls = (tower.embeddings.class_embedding + table[0]).expand(batch, 1, width)
        hidden = tower.pre_layrnorm(torch.cat([cls.to(tokens.dtype), tokens], dim=1))
        encoded: Tensor = tower.encoder(inputs_embeds=hidden).last_hidden_state
        return encoded[:, 1:]

    def place_error(self, features: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
        """Mean squared error of reading a patch's place off its features.

        Without this a tower that learns from labels forgets where it looked, and the language model
        has only the order of tokens, whose rows have another length at every scale, to tell left
        from below. What a pooled token says is then the place of its cell.
        """
        side = math.isqrt(features.shape[1])
        window = self.places[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        return F.mse_loss(
            self.place_head(features).float(), window.flatten(0, 1).expand(len(features), -1, -1)
        )

    @property
    def dense_heads(self) -> list[nn.Module]:
        """What reads the dense labels off the features; no part of the model that is served."""
        heads = (self.class_head, self.colour_head, self.order_head, self.row_head)
        return [*heads, self.column_head, self.place_head]

    def dense_logits(self, features: Tensor) -> DenseLogits:
        """Logits at the label points of every patch."""
        batch, patches, _ = features.shape

        def at(points: int, head: nn.Module) -> Tensor:
            logits: Tensor = head(features)
            return logits.view(batch, patches, points, -1).float()

        return DenseLogits(
            classes=at(LABEL_ROWS * LABEL_COLUMNS, self.class_head),
            colours=at(COLOUR_POINTS, self.colour_head),
            orders=at(LABEL_ROWS * LABEL_COLUMNS, self.order_head),
            rows=at(COLOUR_POINTS, self.row_head),
            columns=at(COLOUR_POINTS, self.column_head),
        )

    def visual_tokens(self, features: Tensor, scale: int) -> Tensor:
        """Projected and pooled: [batch, scale, text width]."""
        return self.pool(self.projector(features), scale)

    def pool(self, projected: Tensor, scale: int) -> Tensor:
        """[batch, patches, text width] → [batch, scale, text width]."""
        side = math.isqrt(projected.shape[1])
        kernel = side // math.isqrt(scale)
        grid = projected.transpose(1, 2).reshape(len(projected), -1, side, side)
        return F.avg_pool2d(grid, kernel).flatten(2).transpose(1, 2)

    def answer_logits(
        self,
        visual: Tensor,
        before: Tensor,
        text: Tensor,
        blocks: Tensor,
        positions: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Logits of the answers to several independent questions about each picture.

        Args:
            visual: [batch, scale, width].
            before: [n] token ids in front of the image.
            text: [batch, length] token ids behind it, questions and answers one after another.
            blocks: [batch, length] number of the question a token belongs to, from 1; 0 is padding.
            positions: [batch, length] position of each token relative to the end of the image.
            wanted: [2, tokens], rows and columns in `text` of those whose prediction is asked for.
                (A mask would make the host wait for the device, which has to count it.)

        Returns:
            [tokens asked for, vocabulary]. A token sees the image and its own question only, as if
            every question had been asked in a conversation of its own.
        """
        batch, scale, _ = visual.shape
        embed = self.language.embed_tokens
        head = embed(before).expand(batch, -1, -1).to(visual.dtype)
        sequence = torch.cat([head, visual, embed(text).to(visual.dtype)], dim=1)
        prefix = before.shape[0] + scale
        every = torch.cat(
            [blocks.new_zeros(batch, prefix), torch.where(blocks > 0, blocks, -1)], dim=1
        )
        place = torch.arange(prefix, device=text.device).expand(batch, -1)
        place = torch.cat([place, prefix + positions], dim=1)
        index = torch.arange(every.shape[1], device=text.device)
        causal = index[:, None] >= index[None, :]
        same = (every[:, None, :] == 0) | (every[:, :, None] == every[:, None, :])
        mask = (causal & same)[:, None]
        states = self._text_states(sequence, prefix, mask, place)
        # A question precedes every answer, so that the first token is never asked for.
        row, column = wanted
        logits: Tensor = self.llava.lm_head(states[row, column - 1])
        return logits

    def _text_states(self, sequence: Tensor, prefix: int, mask: Tensor, place: Tensor) -> Tensor:
        """Final states of what follows the first `prefix` tokens: [batch, length, width].

        Nobody reads the final states of the image's tokens, so the last layer makes only their keys
        and values: a sixth of the language model's work at 576 tokens.
        """
        model = self.language
        cos, sin = model.rotary_emb(sequence, position_ids=place)
        *lower, top = model.layers
        hidden = sequence
        for layer in lower:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin))
        attention, image = top.self_attn, top.input_layernorm(hidden[:, :prefix])
        keys, values = (
            project(image).view(len(image), prefix, -1, attention.head_dim).transpose(1, 2)
            for project in (attention.k_proj, attention.v_proj)
        )
        keys, _ = apply_rotary_pos_emb(keys, keys, cos[:, :prefix], sin[:, :prefix])
        seen = DynamicCache()
        seen.update(keys, values, attention.layer_idx)
        hidden = top(
            hidden[:, prefix:],
            attention_mask=mask[:, :, prefix:],
            position_embeddings=(cos[:, prefix:], sin[:, prefix:]),
            past_key_values=seen,
        )
        states: Tensor = model.norm(hidden)
        return states


def _config(a: Architecture, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=a.vision_width,
        intermediate_size=a.vision_mlp,
        num_hidden_layers=a.vision_layers,
        num_attention_heads=a.vision_heads,
        image_size=M3_GRID_SIDE * PATCH,
        patch_size=PATCH,
        projection_dim=a.vision_width,
    )
    text = LlamaConfig(
        vocab_size=a.vocabulary,
        hidden_size=a.text_width,
        intermediate_size=a.text_mlp,
        num_hidden_layers=a.text_layers,
        num_attention_heads=a.text_heads,
        num_key_value_heads=a.text_heads,
        max_position_embeddings=a.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=M3_GRID_SIDE**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _places() -> Tensor:
    """Row and column of every patch of the grid as waves: [24, 24, 18]."""
    angle = torch.arange(M3_GRID_SIDE) / M3_GRID_SIDE
    waves = [2 * angle - 1]
    for periods in _PERIODS:
        waves += [(2 * math.pi * periods * angle).sin(), (2 * math.pi * periods * angle).cos()]
    along = torch.stack(waves, dim=-1)
    shape = (M3_GRID_SIDE, M3_GRID_SIDE, along.shape[-1])
    return torch.cat([along[:, None].expand(shape), along[None].expand(shape)], dim=-1)


def _initialise_vision(tower: Any) -> None:
    """Patch embedding to a 2-D cosine basis, positions to 2-D sines: a tower that sees at once."""
    weight: Tensor = tower.embeddings.patch_embedding.weight
    width = weight.shape[0]
    n = torch.arange(PATCH, dtype=torch.float32)
    basis = torch.stack(
        [torch.cos(math.pi * (n + 0.5) * k / PATCH) * math.sqrt(2 / PATCH) for k in range(PATCH)]
    )
    basis[0] /= math.sqrt(2)
    frequencies = sorted(((i, j) for i in range(PATCH) for j in range(PATCH)), key=sum)
    luma = torch.tensor([0.299, 0.587, 0.114])
    chroma = (torch.tensor([0.5, -0.5, 0.0]), torch.tensor([0.25, 0.25, -0.5]))
    low = [(c, i, j, 1.0) for i, j in frequencies if i + j < 3 for c in chroma]
    every = low + [(luma, i, j, 1 + 0.15 * (i + j)) for i, j in frequencies]
    filters = [
        torch.einsum("c,h,w->chw", c, basis[i], basis[j]) * gain for c, i, j, gain in every[:width]
    ]
    table: Tensor = tower.embeddings.position_embedding.weight
    quarter = width // 4
    rates = 100 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    angle = torch.arange(M3_GRID_SIDE, dtype=torch.float32)[:, None] * rates
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    side = M3_GRID_SIDE
    both = [wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)]
    with torch.no_grad():
        weight.copy_(torch.stack(filters) * 0.7)
        table[1:].copy_(torch.cat(both, dim=-1).reshape(side * side, -1) * 0.3)


_PUBLIC_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def public_name(key: str) -> str:
    """The name a weight has in the public llava-hf checkpoints, which vLLM reads too."""
    for ours, public in _PUBLIC_NAMES:
        if key.startswith(ours):
            return public + key[len(ours) :]
    raise KeyError(key)


def save_checkpoint(model: TinyLlava, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a bf16 checkpoint in the public llava-hf layout, tokenizer and processor included."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.llava.state_dict()
    weights = {
        public_name(k): v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in state.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    heads = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name.partition(".")[0].endswith("_head")
    }
    save_file(heads, folder / DENSE_HEADS)
    for name in ("model.safetensors", DENSE_HEADS):
        (folder / name).chmod(0o644)  # safetensors lets only the owner read
    config = model.config.to_dict()
    config["architectures"] = ["LlavaForConditionalGeneration"]
    config["dtype"] = "bfloat16"
    config["m3"] = {"scales": list(M3_SCALES), "template": "vicuna_v1", "system": ""}
    _write_json(folder / "config.json", config)
    side = M3_GRID_SIDE * PATCH
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "LlavaImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_pad": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
        },
    )
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": PATCH,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    )
    eos, bos, pad = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": False}
    _write_json(folder / "generation_config.json", generation)
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


__all__ = ["TinyLlava", "build_tokenizer", "public_name", "save_checkpoint"]
