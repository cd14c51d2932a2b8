"""Compares a checkpoint folder with what the reference implementation computed from it.

The folder holds, beside the checkpoint, `image.png`, `expected.json` (`input_ids` with -200 in the
image's place, `scales`, `image_tokens` and `greedy_tokens` per scale) and `expected.safetensors`
(`logits.<scale>` at the last prompt position and, each optional, `pixel_values` and
`image_features.<scale>`). Everything is computed from the image on, in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.errors import CheckpointError
from m3_backend.kv_cache import Span
from m3_backend.messages import ImageInput, digest_of
from m3_backend.preprocess import decode_image
from m3_backend.prompt import Prompt
from m3_backend.runner import ModelRunner
from m3_backend.vision import assemble, pool

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ScaleReport:
    """One scale against the reference.

    Args:
        features, logits: largest absolute deviation ÷ largest absolute reference value; features is
            None where the reference has none.
        greedy, expected_greedy: generated token ids, ours and the reference's.
    """

    scale: int
    image_tokens: int
    expected_image_tokens: int
    features: float | None
    logits: float
    greedy: tuple[int, ...]
    expected_greedy: tuple[int, ...]

    @property
    def passed(self) -> bool:
        return (
            self.image_tokens == self.expected_image_tokens
            and (self.features is None or self.features <= TOLERANCE)
            and self.logits <= TOLERANCE
            and self.greedy == self.expected_greedy
        )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A checkpoint against its reference. `pixels` is a relative deviation like the scales'."""

    folder: str
    identity: str
    pixels: float | None
    scales: tuple[ScaleReport, ...]

    @property
    def passed(self) -> bool:
        pixels_agree = self.pixels is None or self.pixels <= TOLERANCE
        return pixels_agree and all(scale.passed for scale in self.scales)


def verify(folder: Path, *, device: str = "cpu") -> VerifyReport:
    """Run the checkpoint in `folder` at every scale of its `expected.json`.

    Raises:
        CheckpointError: the checkpoint or its reference cannot be read.
    """
    try:
        expected = json.loads((folder / "expected.json").read_text())
        data = (folder / "image.png").read_bytes()
        with safe_open(folder / "expected.safetensors", framework="pt") as file:
            reference = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} needs expected.json, expected.safetensors and image.png to be verified."
        ) from error

    checkpoint = open_checkpoint(folder, dtype="float32", device=device)
    picture = decode_image(data)
    image = ImageInput(data, digest_of(data), picture.width, picture.height)
    pixels = torch.from_numpy(checkpoint.preprocessing.pixels(picture))
    full = checkpoint.model.encode(pixels.to(checkpoint.device)).cpu()
    prompt = Prompt.from_marked(expected["input_ids"], expected.get("image_token_index", -200))
    return VerifyReport(
        folder=str(folder),
        identity=checkpoint.identity,
        pixels=_deviation(pixels, reference.get("pixel_values")),
        scales=tuple(
            _verify_scale(checkpoint, scale, prompt, image, full, expected, reference)
            for scale in expected["scales"]
        ),
    )


def _verify_scale(
    checkpoint: Checkpoint,
    scale: int,
    prompt: Prompt,
    image: ImageInput,
    full: Tensor,
    expected: dict[str, Any],
    reference: dict[str, Tensor],
) -> ScaleReport:
    features = pool(full, checkpoint.ladder, scale)
    newline = checkpoint.model.image_newline
    tokens = assemble(
        features.to(checkpoint.device), image.width, image.height, checkpoint.tiling, newline
    )
    answer = tuple(expected["greedy_tokens"][str(scale)])
    length = prompt.length([len(tokens)])
    runner = ModelRunner(checkpoint, tokens=length + len(answer))
    table = np.arange(1, length + len(answer) + 1)
    logits = runner.prefill([Span(table, 0, length)], [runner.embed(prompt, [image], [features])])
    first = logits[0].cpu()
    greedy = [int(first.argmax())]
    while len(greedy) < len(answer):
        logits = runner.decode([Span(table, length + len(greedy) - 1, 1)], greedy[-1:])
        greedy.append(int(logits[0].argmax()))
    return ScaleReport(
        scale=scale,
        image_tokens=len(tokens),
        expected_image_tokens=int(expected["image_tokens"][str(scale)]),
        features=_deviation(tokens.cpu(), reference.get(f"image_features.{scale}")),
        logits=_deviation(first, reference[f"logits.{scale}"]) or 0.0,
        greedy=tuple(greedy),
        expected_greedy=answer,
    )


def _deviation(ours: Tensor, reference: Tensor | None) -> float | None:
    """Largest absolute difference ÷ largest absolute reference value; infinite for other shapes."""
    if reference is None:
        return None
    if ours.shape != reference.shape:
        return float("inf")
    return float((ours - reference).abs().max() / reference.abs().max())
