"""Opens a checkpoint, whatever its layout, and says what it is.

llava           llava-hf LLaVA-1.5 (LlavaForConditionalGeneration); m3-tiny is one
llava_next      llava-hf LLaVA-NeXT (LlavaNextForConditionalGeneration)
llava_llama     the original LLaVA layout, in which the M3 checkpoints were released
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaNextConfig,
)

from m3_backend.allocator import keep_freed_memory
from m3_backend.costs import ModelShape
from m3_backend.errors import CheckpointError
from m3_backend.kernels import keep_few_kernels
from m3_backend.model import M3Model
from m3_backend.preprocess import ImagePreprocessing
from m3_backend.prompt import PromptTemplate, Tokenizer
from m3_backend.scales import M3_SCALES, ScaleLadder, Tiling, parse_scales
from m3_backend.weights import has_vision_weights, identity_of, load_weights, weight_files

PACKAGED = Path(__file__).parent / "checkpoints"

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to run and everything that must be known about it.

    Args:
        identity: SHA-256 of weights and config; names the model in cache keys and artefacts.
        tokenizer: None for checkpoints without one (they serve token ids only).
        max_context: tokens, prompt and answer together.
    """

    name: str
    identity: str
    model: M3Model
    tokenizer: Tokenizer | None
    template: PromptTemplate
    preprocessing: ImagePreprocessing
    ladder: ScaleLadder
    shape: ModelShape
    max_context: int
    dtype: torch.dtype
    device: torch.device

    @property
    def tiling(self) -> Tiling | None:
        return self.preprocessing.tiling

    @property
    def eos(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.language_model.config.eos_token_id
        own = {token for token in (ids if isinstance(ids, list) else [ids]) if token is not None}
        return frozenset(own | ({self.tokenizer.eos} if self.tokenizer else set()))


@dataclass(frozen=True, slots=True)
class _Description:
    """What a layout's config files say, in one vocabulary."""

    vision: Any  # CLIPVisionConfig and LlamaConfig, whose own annotations are too loose to use
    text: Any
    feature_layer: object
    preprocessing: ImagePreprocessing
    scales: tuple[int, ...]
    template: PromptTemplate
    files: tuple[Path, ...]
    projector_activation: str = "gelu"
    projector_bias: bool = True


def open_checkpoint(
    name_or_path: str | Path, *, dtype: str = "auto", device: str = "auto"
) -> Checkpoint:
    """Open a model by the name of a packaged one ("m3-tiny"), a folder or a Hugging Face hub id.

    Weights are mapped and converted tensor by tensor onto the device: there is no second full copy.
    On a CPU the allocator of this process is told to keep what is freed (m3_backend/allocator.py)
    and oneDNN to keep few compiled products (m3_backend/kernels.py).

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's own, except that a CPU
            takes float32 for float16.
        device: "cpu", "cuda", "cuda:1", …, or "auto": CUDA if there is any.

    Raises:
        CheckpointError: it cannot be opened; the message names the file or the keys at fault.
    """
    folder = _find(str(name_or_path))
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "llava_llama":
        description = _describe_original(folder, config)
    elif kind in ("llava", "llava_next"):
        description = _describe_llava_hf(folder, config)
    else:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {kind!r}; "
            "supported are 'llava', 'llava_next' and 'llava_llama'."
        )
    if not description.files:
        raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin.")

    target = _device(device)
    chosen = _dtype(dtype, config, target)
    vision, text = description.vision, description.text
    used_layers = _used_vision_layers(vision, description.feature_layer)
    with torch.device("meta"):
        model = M3Model(
            CLIPVisionConfig.from_dict(vision.to_dict() | {"num_hidden_layers": used_layers}),
            text,
            projector_activation=description.projector_activation,
            projector_bias=description.projector_bias,
            newline=description.preprocessing.tiling is not None,
        )
    load_weights(model, description.files, dtype=chosen, device=target)
    model.choose_attention()
    if target.type == "cpu":
        keep_freed_memory()
        keep_few_kernels()
    return Checkpoint(
        name=str(name_or_path),
        identity=identity_of(
            description.files, json.dumps([config, vision.to_dict()], sort_keys=True).encode()
        ),
        model=model.eval(),
        tokenizer=_tokenizer(folder, kind),
        template=description.template,
        preprocessing=description.preprocessing,
        ladder=_ladder(description.scales, vision.image_size // vision.patch_size),
        shape=ModelShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocabulary=text.vocab_size,
        ),
        max_context=text.max_position_embeddings,
        dtype=chosen,
        device=target,
    )


def _describe_llava_hf(folder: Path, config: dict[str, Any]) -> _Description:
    tiled = config["model_type"] == "llava_next"
    text_kind = config.get("text_config", {}).get("model_type", "llama")
    if text_kind != "llama":
        raise CheckpointError(f"The language model is {text_kind!r}; only 'llama' is supported.")
    parsed: Any = (LlavaNextConfig if tiled else LlavaConfig).from_dict(config)
    if parsed.vision_feature_select_strategy != "default":
        raise CheckpointError("Features with the class token cannot be pooled to token scales.")
    side = parsed.vision_config.image_size
    tiling = None
    if tiled:  # llava-hf lists (height, width)
        tiling = Tiling(side, tuple((h, w) for h, w in parsed.image_grid_pinpoints))
    processor = _read_json(folder / "preprocessor_config.json")
    own = config.get("m3", {})
    if own.get("template", "vicuna_v1") != "vicuna_v1":
        raise CheckpointError(f"Prompt template {own['template']!r} is unknown; use 'vicuna_v1'.")
    return _Description(
        vision=parsed.vision_config,
        text=parsed.text_config,
        feature_layer=parsed.vision_feature_layer,
        preprocessing=ImagePreprocessing(
            fit="tiles" if tiled else "pad" if processor.get("do_pad") else "crop",
            side=side,
            tiling=tiling,
            **_normalisation(processor),
        ),
        scales=tuple(own.get("scales", M3_SCALES)),
        template=PromptTemplate(own["system"]) if "system" in own else PromptTemplate(),
        files=weight_files(folder),
        projector_activation=parsed.projector_hidden_act,
        projector_bias=parsed.multimodal_projector_bias,
    )


def _describe_original(folder: Path, config: dict[str, Any]) -> _Description:
    if config.get("mm_projector_type") != "mlp2x_gelu":
        raise CheckpointError(
            f"mm_projector_type is {config.get('mm_projector_type')!r}; 'mlp2x_gelu' is supported."
        )
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise CheckpointError("Features with the class token cannot be pooled to token scales.")
    files = weight_files(folder)
    tuned = has_vision_weights(folder)
    tower = _vision_folder(folder, config, with_weights=not tuned)
    vision_config = _read_json(tower / "config.json")
    vision: Any = CLIPVisionConfig.from_dict(vision_config.get("vision_config", vision_config))

    # The reference also writes a single number here, the scale of its last run: no ladder.
    scales = config.get("matryoshka_vis_token_scale")
    aspect = config.get("image_aspect_ratio", "square")
    tiling = None
    if aspect == "anyres":
        if config.get("mm_patch_merge_type") != "spatial_unpad":
            raise CheckpointError("anyres is supported with mm_patch_merge_type 'spatial_unpad'.")
        # The original layout lists (width, height). The order of the list decides ties: it is kept.
        pinpoints = tuple((h, w) for w, h in config["image_grid_pinpoints"])
        tiling = Tiling(vision.image_size, pinpoints)
    return _Description(
        vision=vision,
        text=LlamaConfig.from_dict(config | {"model_type": "llama"}),
        feature_layer=config["mm_vision_select_layer"],
        preprocessing=ImagePreprocessing(
            fit="tiles" if tiling else "pad" if aspect == "pad" else "crop",
            side=vision.image_size,
            tiling=tiling,
            **_normalisation(_read_json(tower / "preprocessor_config.json")),
        ),
        scales=tuple(scales) if isinstance(scales, list) else M3_SCALES,
        template=PromptTemplate(),
        files=files if tuned else files + weight_files(tower),
    )


def _vision_folder(folder: Path, config: dict[str, Any], *, with_weights: bool) -> Path:
    name = config["mm_vision_tower"]
    beside = folder / name
    return beside if beside.is_dir() else _find(name, with_weights=with_weights)


def _find(name: str, *, with_weights: bool = True) -> Path:
    if Path(name).name == name and (PACKAGED / name / "config.json").is_file():
        return PACKAGED / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name, with_weights=with_weights)
    raise CheckpointError(f"{name!r} is no folder, packaged model or hub id (owner/name).")


def _download(repository: str, *, with_weights: bool) -> Path:
    """A repository's files in the hub's local cache; .bin files only if there is nothing better."""
    patterns = ["*.json", "tokenizer.model"]
    if with_weights:
        patterns.append("*.safetensors")
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
        if with_weights and not weight_files(folder):
            patterns.append("pytorch_model*.bin")
            folder = Path(snapshot_download(repository, allow_patterns=patterns))
        return folder
    except (
        Exception
    ) as error:  # the hub's client raises many kinds; all mean the same to an operator
        raise CheckpointError(
            f"{repository!r} could not be fetched from the Hugging Face hub; check the name, the "
            "network and HF_TOKEN, or pass a local folder."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or not JSON.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return content


def _normalisation(processor: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean": tuple(processor.get("image_mean", _CLIP_MEAN)),
        "std": tuple(processor.get("image_std", _CLIP_STD)),
        "resample": int(processor.get("resample", 3)),
    }


def _used_vision_layers(vision: Any, feature_layer: object) -> int:
    """Layers up to the one whose output is projected; state 0 is the embedding, -1 the last."""
    states = int(vision.num_hidden_layers) + 1
    if not isinstance(feature_layer, int) or not -states <= feature_layer < states:
        raise CheckpointError(f"Vision feature layer {feature_layer!r} is not one of {states}.")
    return feature_layer % states


def _ladder(scales: tuple[int, ...], grid_side: int) -> ScaleLadder:
    try:
        return parse_scales(scales, grid_side)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}.") from error


def _tokenizer(folder: Path, kind: str) -> Tokenizer | None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    loader = LlamaTokenizer if kind == "llava_llama" else AutoTokenizer
    return Tokenizer(loader.from_pretrained(folder))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"Device {name!r} is not available here.") from error


def _dtype(name: str, config: dict[str, Any], device: torch.device) -> torch.dtype:
    if name == "auto":
        name = config.get("dtype") or config.get("torch_dtype") or "float32"
        if name == "float16" and device.type == "cpu":
            name = "float32"  # CPUs have no fast float16; float32 is exact
    if name not in _DTYPES:
        raise CheckpointError(f"dtype {name!r} is unknown; use {', '.join(_DTYPES)} or auto.")
    return _DTYPES[name]
