"""Checkpoints and pictures for tests, made from the reduced references."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from m3_backend.messages import ImageInput, digest_of

GOLDEN = Path(__file__).parent / "golden"
LLAVA15, NEXT = GOLDEN / "llava15-m3", GOLDEN / "llava-next-m3"


def image_input(data: bytes) -> ImageInput:
    with Image.open(io.BytesIO(data)) as image:
        return ImageInput(data, digest_of(data), image.width, image.height)


def golden_image(folder: Path) -> ImageInput:
    return image_input((folder / "image.png").read_bytes())


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> ImageInput:
    """A small picture that is different for every seed."""
    pixels = torch.randint(0, 256, (*size[::-1], 3), generator=torch.manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(file, "PNG")
    return image_input(file.getvalue())


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def write_llava_hf(source: Path, target: Path, *, published_names: bool = True) -> None:
    """An original checkpoint in llava-hf's layout.

    Args:
        published_names: the names of public llava-hf checkpoints, else those of transformers 4.5x
            and later, in which everything stands below `model.`.
    """
    config = json.loads((source / "config.json").read_text())
    vision = json.loads((source / "vision_tower" / "config.json").read_text())
    tiled = config["image_aspect_ratio"] == "anyres"
    changes: dict[str, Any] = {
        "model_type": "llava_next" if tiled else "llava",
        "text_config": {
            key: config[key]
            for key in (
                "hidden_size",
                "intermediate_size",
                "max_position_embeddings",
                "num_attention_heads",
                "num_hidden_layers",
                "num_key_value_heads",
                "rms_norm_eps",
                "rope_theta",
                "vocab_size",
            )
        }
        | {"model_type": "llama"},
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "torch_dtype": "float32",
    }
    if tiled:
        changes["image_grid_pinpoints"] = [[h, w] for w, h in config["image_grid_pinpoints"]]
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(changes))
    shutil.copyfile(source / "image.png", target / "image.png")
    for name in ("expected.json", "expected.safetensors"):
        shutil.copyfile(source / name, target / name)
    processor = json.loads((source / "vision_tower" / "preprocessor_config.json").read_text())
    (target / "preprocessor_config.json").write_text(json.dumps(processor | {"do_pad": True}))
    rename = _published_name if published_names else _nested_name
    weights = load_file(source / "model.safetensors")
    save_file({rename(name): w for name, w in weights.items()}, target / "model.safetensors")


def _published_name(name: str) -> str:
    for old, new in (
        ("model.vision_tower.vision_tower.", "vision_tower."),
        ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
        ("model.image_newline", "image_newline"),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


def _nested_name(name: str) -> str:
    published = _published_name(name).replace("vision_model.", "")
    if published.startswith("language_model.model."):
        return "model." + published.replace("language_model.model.", "language_model.")
    return published.removeprefix("language_model.") if "lm_head" in name else "model." + published


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 400 tokens, so that every token id of the references is text."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["USER: What is in the picture? ASSISTANT:", "naïve café 日本語 текст 🙂 </s> <image>"]
    corpus = text + [f"{a} {b}" for a in text[0].split() for b in text[0].split()]
    corpus += [f"number {i} and {i * 7919}" for i in range(400)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "image_token": "<image>",
            }
        )
    )
