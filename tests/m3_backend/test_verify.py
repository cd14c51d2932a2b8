"""Verification passes on the references and fails where a checkpoint departs from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch import Tensor

from m3_backend.errors import CheckpointError
from m3_backend.verify import TOLERANCE, verify
from tests.m3_backend.support import LLAVA15, NEXT, edit_json, edit_weights

SCALES = (1, 9, 36, 144, 576)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LLAVA15, tmp_path / "checkpoint"))


@pytest.mark.parametrize("reference", [LLAVA15, NEXT], ids=lambda folder: folder.name)
def test_the_references_pass_at_every_scale(reference: Path) -> None:
    report = verify(reference)
    assert report.passed
    assert tuple(scale.scale for scale in report.scales) == SCALES
    for scale in report.scales:
        assert scale.logits < TOLERANCE / 10
        assert (scale.features is None) == (scale.scale > 36)
        assert scale.greedy == scale.expected_greedy and len(scale.greedy) == 12


def test_another_weight_fails_in_the_logits(folder: Path) -> None:
    def nudge(weights: dict[str, Tensor]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"] *= 1.01

    edit_weights(folder, nudge)
    report = verify(folder)
    assert not report.passed
    assert all(scale.features is None or scale.features < TOLERANCE for scale in report.scales)
    assert all(scale.logits > TOLERANCE for scale in report.scales)


def test_another_vision_layer_fails_in_the_features(folder: Path) -> None:
    edit_json(folder / "config.json", mm_vision_select_layer=-1)
    report = verify(folder)
    assert not report.passed
    assert (report.scales[0].features or 0) > TOLERANCE


def test_other_tokens_and_other_counts_fail(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    expected["greedy_tokens"]["9"][-1] += 1
    expected["image_tokens"]["36"] = 35
    (folder / "expected.json").write_text(json.dumps(expected))
    assert [scale.passed for scale in verify(folder).scales] == [True, False, False, True, True]


@pytest.mark.parametrize("missing", ["expected.json", "expected.safetensors", "image.png"])
def test_a_folder_without_a_reference_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match="needs expected"):
        verify(folder)
