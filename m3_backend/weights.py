"""Weight files: which a folder has, what names them, and filling a model tensor by tensor.

Families of names that lead to one canonical one, that of `model.M3Model`'s parameters:

    original LLaVA          model.vision_tower.vision_tower.*   model.mm_projector.{0,2}.*   model.*
    CLIP beside it          vision_model.*
    llava-hf, as published  vision_tower.vision_model.*   multi_modal_projector.*   language_model.*
    llava-hf, transformers  [model.]vision_tower.*   [model.]multi_modal_projector.*
                            [model.]language_model.*
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from m3_backend.errors import CheckpointError
from m3_backend.model import M3Model

_SINGLE = ("model.safetensors", "pytorch_model.bin")

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "vision_tower."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower."),
        (r"^vision_model\.", "vision_tower."),
        (r"^model\.mm_projector\.0\.", "projector.linear_1."),
        (r"^model\.mm_projector\.2\.", "projector.linear_2."),
        (r"^(?:model\.)?multi_modal_projector\.", "projector."),
        (r"^(?:model\.)?image_newline$", "image_newline"),
        (r"^language_model\.(?=model\.|lm_head\.)", "language_model."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.", "language_model.model."),
    )
)
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_CLIP_TEXT = re.compile(r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)")
_VISION_LAYER = re.compile(r"^vision_tower\.encoder\.layers\.(\d+)\.")


def canonical_name(name: str) -> str:
    """The parameter of `M3Model` that a stored tensor belongs to (first matching family)."""
    for pattern, replacement in _RENAMES:
        renamed, matched = pattern.subn(replacement, name)
        if matched:
            return renamed
    return name


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder, safetensors before .bin, shards in the order of their names.

    Raises:
        CheckpointError: a shard that the index lists is missing. No weights at all give ().
    """
    for single in _SINGLE:
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _shards(index)
        if (folder / single).is_file():
            return (folder / single,)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a weight index; download it again.") from error
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index.name} names a file outside its folder: {name!r}.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks shards {_listed(missing)}; download it again.")
    return tuple(index.parent / name for name in names)


def stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and memory-mapped tensor of everything in one weight file, one at a time.

    Raises:
        CheckpointError: a damaged file, or one with sparse or otherwise odd tensors.
    """
    if path.suffix == ".safetensors":
        with _damage_named(path), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
        return
    with _damage_named(path):
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    for name, tensor in tensors.items():
        # Sparse tensors are refused: their indices are not validated on loading (CVE-2025-62164).
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{path.name}: {name} is not a dense tensor.")
        yield name, tensor


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read as weights; download it again.") from error


def has_vision_weights(folder: Path) -> bool:
    """Whether an original checkpoint brings its own vision tower, which then wins over CLIP's."""
    return any(
        canonical_name(name).startswith("vision_tower.")
        for path in weight_files(folder)
        for name in _names(path)
    )


def _names(path: Path) -> list[str]:
    if path.suffix == ".safetensors":
        with _damage_named(path), safe_open(path, framework="pt") as file:
            return list(file.keys())
    return [name for name, _ in stored_tensors(path)]


def load_weights(
    model: M3Model, files: tuple[Path, ...], *, dtype: torch.dtype, device: torch.device
) -> None:
    """Replace the meta tensors of `model` by what `files` hold, converted one tensor at a time.

    Memory never holds more than the model and one tensor: the files are mapped, not read.

    Raises:
        CheckpointError: naming keys that are missing, unexpected, doubled or of another shape.
    """
    expected = dict(model.named_parameters())
    used_layers = model.vision_tower.config.num_hidden_layers
    loaded: set[str] = set()
    unexpected: list[str] = []
    for path in files:
        for stored_name, tensor in stored_tensors(path):
            name = canonical_name(stored_name)
            if _is_unused(name, used_layers):
                continue
            if name not in expected:
                unexpected.append(stored_name)
                continue
            if name in loaded:
                raise CheckpointError(f"{path.name}: {stored_name} is there twice.")
            if tensor.shape != expected[name].shape:
                raise CheckpointError(
                    f"{path.name}: {stored_name} has shape {tuple(tensor.shape)}, "
                    f"config.json implies {tuple(expected[name].shape)}."
                )
            _assign(model, name, tensor.to(device=device, dtype=dtype, copy=True))
            loaded.add(name)
    _tie_embeddings(model, loaded)
    missing = sorted(set(expected) - loaded)
    if missing or unexpected:
        raise CheckpointError(
            "The weights do not fit config.json."
            + (f" Missing: {_listed(missing)}." if missing else "")
            + (f" Unexpected: {_listed(unexpected)}." if unexpected else "")
        )
    model.restore_buffers(device)


def _is_unused(name: str, used_layers: int) -> bool:
    layer = _VISION_LAYER.match(name)
    return (
        (layer is not None and int(layer[1]) >= used_layers)
        or name.startswith("vision_tower.post_layernorm.")
        or _COMPUTED.search(name) is not None
        or _CLIP_TEXT.match(name) is not None
    )


def _assign(model: M3Model, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    setattr(model.get_submodule(owner), attribute, parameter)


def _tie_embeddings(model: M3Model, loaded: set[str]) -> None:
    head, embeddings = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    if model.language_model.config.tie_word_embeddings and embeddings in loaded:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
        loaded.add(head)


def identity_of(files: tuple[Path, ...], settings: bytes) -> str:
    """SHA-256 that names a model: its settings and every weight file, each with its length.

    Every byte counts: a fine-tuned layer must not find the features of the model it came from.
    That takes about a second per GB, of files that loading has just read.
    """
    digest = hashlib.sha256()
    digest.update(len(settings).to_bytes(8, "little") + settings)
    for path in files:
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # goes on with this one
    return digest.hexdigest()


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
