"""The shape of a checkpoint's language model from its configuration alone. No weights, no torch.

Operations and bytes follow from the shape, so they can be told for a model that is not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from m3_backend.costs import ModelShape
from m3_backend.errors import CheckpointError

_PACKAGED = Path(__file__).parent / "checkpoints"
_CONFIG = "config.json"

# What a config of this kind means where it is silent (transformers' LlamaConfig); public LLaVA
# configs leave out whatever is Vicuna-7B's.
_LLAMA = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}

_VICUNA_7B = ModelShape(
    layers=32,
    hidden=4096,
    intermediate=11008,
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocabulary=32000,
)
_VICUNA_13B = ModelShape(
    layers=40,
    hidden=5120,
    intermediate=13824,
    heads=40,
    kv_heads=40,
    head_dim=128,
    vocabulary=32000,
)

KNOWN_SHAPES: Mapping[str, ModelShape] = {
    "llava-1.5-7b": _VICUNA_7B,
    "llava-1.5-13b": _VICUNA_13B,
    "llava-next-7b": _VICUNA_7B,
    "mucai/llava-v1.5-7b-m3": _VICUNA_7B,
    "mucai/llava-next-vicuna-7b-m3": _VICUNA_7B,
}


def find_shape(name: str) -> ModelShape:
    """The shape behind a name. Nothing is downloaded.

    Args:
        name: one of KNOWN_SHAPES, a packaged model ("m3-tiny"), a folder with a config.json, or a
            Hugging Face id whose config is already in the hub's local cache.

    Raises:
        CheckpointError: none of these, or a config that does not tell the shape.
    """
    if name in KNOWN_SHAPES:
        return KNOWN_SHAPES[name]
    path = _find_config(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or not JSON.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return shape_from_config(config)


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape from a LLaVA config.json, of the llava-hf layouts or the original one.

    Raises:
        CheckpointError: a size is missing, and the language model is no Llama whose defaults are
            known.
    """
    nested = config.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    # Within text_config, silence means Llama; the original layout spells every size out.
    kind = text.get("model_type", "llama") if text is nested else None
    known = _LLAMA if kind == "llama" else {}

    def size(key: str) -> int:
        value = text.get(key, known.get(key))
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"The config does not tell {key} of its language model.")
        return value

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    return ModelShape(
        layers=size("num_hidden_layers"),
        hidden=hidden,
        intermediate=size("intermediate_size"),
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocabulary=size("vocab_size"),
    )


def _find_config(name: str) -> Path:
    packaged = _PACKAGED / name / _CONFIG
    if Path(name).name == name and packaged.is_file():
        return packaged
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / _CONFIG
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        cached = try_to_load_from_cache(name, _CONFIG)
        if isinstance(cached, str):
            return Path(cached)
    raise CheckpointError(
        f"The shape of {name!r} is not known here; name a folder with its config.json, "
        f"a packaged model, or one of {', '.join(KNOWN_SHAPES)}."
    )
