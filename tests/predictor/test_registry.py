"""Versions of predictors: taken in whole, switched in one step, rolled back."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from predictor import artifact as artifacts
from predictor.errors import ArtifactError, RegistryError
from predictor.predictor import Predictor
from predictor.registry import CURRENT, Registry, difference, is_registry
from predictor.train import fit
from tests.predictor import synthetic


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions of a predictor of one model, then one of another model."""
    folder = tmp_path_factory.mktemp("trained")
    one = fit(synthetic.outcome_table(300), synthetic.image_table(300), target="agreement", seed=1)
    other = replace(one, source=replace(one.source, model_identity="f" * 64))
    versions = [replace(one, metrics={"log_loss": value}) for value in (0.1, 0.2, 0.3)]
    for number, artifact in enumerate((*versions, other)):
        artifacts.save(artifact, folder / str(number), f"2026-01-0{number + 1}")
    return [folder / str(number) for number in range(4)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", clock=lambda: datetime(2026, 11, 26, tzinfo=UTC))


def model(folder: Path) -> str:
    return artifacts.load(folder)[0].source.model_identity


def test_versions_stand_by_model_and_the_one_that_serves_is_known(
    registry: Registry, trained: list[Path]
) -> None:
    assert registry.versions() == []
    added = [registry.add(folder) for folder in trained]
    assert registry.add(trained[0]) == added[0]
    assert {each.version for each in registry.versions()} == {each.version for each in added}
    assert [each.serves for each in registry.versions()] == [False] * 4
    assert registry.current(model(trained[0])) is None
    registry.promote(added[1].version, "better")
    serving = registry.current(model(trained[0]))
    assert serving is not None
    assert serving.version == added[1].version
    assert registry.current(model(trained[3])) is None
    link = registry.link(model(trained[0]))
    assert Predictor.load(link).version == added[1].version


def test_rolling_back_goes_through_what_served_before(
    registry: Registry, trained: list[Path]
) -> None:
    identity = model(trained[0])
    one, two, three = (registry.add(folder).version for folder in trained[:3])
    for version in (one, two):
        registry.promote(version, "better")
    assert registry.rollback(identity, "worse").version == one
    registry.promote(three, "better")
    assert registry.rollback(identity, "worse").version == one
    event = registry.rollback(identity, "back to what ships")
    assert (event.version, event.before) == (None, one)
    assert registry.current(identity) is None
    with pytest.raises(RegistryError, match="nothing can be rolled back"):
        registry.rollback(identity, "once more")
    assert [event.action for event in registry.history(identity)] == [
        *("promote", "promote", "rollback"),
        *("promote", "rollback", "rollback"),
    ]


def test_a_switch_that_was_not_written_down_can_be_rolled_back(
    registry: Registry, trained: list[Path]
) -> None:
    one, two = (registry.add(folder) for folder in trained[:2])
    registry.promote(one.version, "first")
    link = registry.link(one.model_identity)
    link.unlink()
    link.symlink_to(two.version)
    assert registry.rollback(one.model_identity, "odd").version == one.version


def test_what_is_broken_is_neither_taken_in_nor_promoted(
    registry: Registry, trained: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError):
        registry.add(tmp_path / "empty")
    one, two = (registry.add(folder) for folder in trained[:2])
    registry.promote(one.version, "first")
    (two.folder / "model.txt").write_text("altered")
    with pytest.raises(ArtifactError):
        registry.promote(two.version, "worse")
    serving = registry.current(one.model_identity)
    assert serving is not None
    assert serving.version == one.version


def test_names_may_be_shortened_as_long_as_they_are_one(
    registry: Registry, trained: list[Path]
) -> None:
    one = registry.add(trained[0])
    registry.add(trained[1])
    assert registry.find(one.version[:8]) == one
    for name in ("", "nothing"):
        with pytest.raises(RegistryError, match=one.version):
            registry.find(name)


def test_current_always_points_to_a_whole_one(registry: Registry, trained: list[Path]) -> None:
    """Read again and again while it is switched again and again."""
    versions = [registry.add(folder).version for folder in trained[:2]]
    registry.promote(versions[0], "first")
    link = registry.link(model(trained[0]))
    done = threading.Event()

    def switch() -> None:
        for turn in range(60):
            registry.promote(versions[turn % 2], "turn")
        done.set()

    thread = threading.Thread(target=switch)
    thread.start()
    reads = 0
    while not done.is_set() or reads < 5:
        assert Predictor.load(link.resolve()).version in versions
        reads += 1
    thread.join()
    assert len(registry.history(model(trained[0]))) == 61


def test_what_two_versions_say_differently(registry: Registry, trained: list[Path]) -> None:
    one, two = (registry.add(folder) for folder in trained[:2])
    pairs = difference(one, two)
    assert pairs["log_loss"] == (0.1, 0.2)
    assert "model" not in pairs


def test_a_registry_is_told_from_an_artefact(registry: Registry, trained: list[Path]) -> None:
    registry.add(trained[0])
    assert is_registry(registry.root)
    assert not is_registry(trained[0])
    assert not is_registry(registry.root / "gone")
    assert CURRENT not in {each.version for each in registry.versions()}
