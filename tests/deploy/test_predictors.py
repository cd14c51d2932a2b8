"""Which predictor a configuration means, with a real artefact trained on synthetic outcomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy import predictors
from deploy.config import load
from deploy.predictors import find_artifact, open_predictor
from m3_backend.messages import ModelInfo
from predictor import artifact as artifacts
from predictor.errors import ArtifactError
from predictor.train import fit
from tests.fakes import MODEL
from tests.predictor import synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "m3-tiny"
    outcomes, images = synthetic.outcome_table(300), synthetic.image_table(300)
    artifacts.save(fit(outcomes, images, target="agreement", seed=1), out, "2026-01-01")
    return out


def model_of(folder: Path) -> ModelInfo:
    """The model that the artefact was trained for."""
    source = artifacts.load(folder)[0].source
    return replace(
        MODEL,
        name=source.model,
        identity=source.model_identity,
        processor=source.processor,
        ladder=source.ladder,
    )


def test_a_named_artefact_is_opened_for_its_own_model_only(folder: Path) -> None:
    config = load("local.yaml", {"predictor": str(folder)})
    model = model_of(folder)
    opened = open_predictor(config, model)
    assert opened is not None
    assert opened.ladder == model.ladder
    with pytest.raises(ArtifactError, match="predictor: none"):
        open_predictor(config, replace(model, identity="f" * 64))


def test_none_does_without(folder: Path) -> None:
    assert open_predictor(load("local.yaml", {"predictor": "none"}), model_of(folder)) is None


def test_auto_takes_what_ships_with_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictors, "PACKAGED", folder.parent)
    auto = load("local.yaml")
    assert find_artifact(auto) == folder
    assert open_predictor(auto, model_of(folder)) is not None
    for other in ("mucai/other", str(folder), f"../{folder.parent.name}/m3-tiny"):
        assert find_artifact(auto.with_changes({"model.checkpoint": other})) is None


@pytest.mark.parametrize("damage", ["gone", "empty", "altered"])
def test_a_named_artefact_that_cannot_be_served_is_refused(
    damage: str, folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    if damage != "gone":
        broken.mkdir()
    if damage == "altered":
        for file in folder.iterdir():
            (broken / file.name).write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ArtifactError):
        open_predictor(load("local.yaml", {"predictor": str(broken)}), MODEL)
