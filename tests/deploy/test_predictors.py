"""Which predictor a configuration means, with a real artefact trained on synthetic outcomes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import predictors
from deploy.config import load
from deploy.predictors import (
    find_artifact,
    open_predictor,
    watch_observed,
    watch_predictor,
)
from m3_backend.messages import ModelInfo
from predictor import artifact as artifacts
from predictor.errors import ArtifactError
from predictor.registry import Registry
from predictor.train import fit
from tests.fakes import MODEL
from tests.predictor import synthetic


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/m3-router/predictors"


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


def test_one_that_is_missing_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no predictor"):
        watch_predictor(load("local.yaml", {"predictor": str(tmp_path / "gone")}), MODEL)


async def test_a_newly_trained_one_is_taken_over_from_the_same_folder(
    folder: Path, tmp_path: Path
) -> None:
    served, model = tmp_path / "served", model_of(folder)
    shutil.copytree(folder, served)
    watch = watch_predictor(load("local.yaml", {"predictor": str(served)}), model)
    assert watch is not None
    first = watch.version

    async def now() -> tuple[bool, bool]:
        """Whether another version than the first is in force, and whether one was refused."""
        for _ in range(2):
            await watch.look()
        return watch.version != first, watch.refused

    old, _ = artifacts.load(folder)
    other = replace(old, source=replace(old.source, model_identity="f" * 64))
    artifacts.save(other, served, "2026-01-02")
    assert await now() == (False, True)  # sound, and made for another model
    artifacts.save(replace(old, metrics={"auc": 0.5}), served, "2026-01-03")
    assert await now() == (True, False)
    for file in served.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert await now() == (True, True)
    shutil.rmtree(served)
    assert await now() == (True, True)
    shutil.copytree(folder, served)
    assert await now() == (False, False)


async def test_a_link_that_is_pointed_elsewhere_is_a_change(folder: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "current"
    artifacts.save(replace(artifacts.load(folder)[0], metrics={"auc": 0.5}), other, "2026-01-02")
    link.symlink_to(folder)
    watch = watch_predictor(load("local.yaml", {"predictor": str(link)}), model_of(folder))
    assert watch is not None
    link.unlink()
    link.symlink_to(other)
    for _ in range(2):
        await watch.look()
    assert watch.version == artifacts.load(other)[1]


async def test_what_serves_in_this_users_registry_comes_before_what_ships(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first promotion to the last rollback, without a restart."""
    monkeypatch.setattr(predictors, "PACKAGED", folder.parent)
    model, registry = model_of(folder), Registry(home)
    watch = watch_predictor(load("local.yaml"), model)
    assert watch is not None
    shipped = watch.version
    better = folder.parent / "better"
    artifacts.save(replace(artifacts.load(folder)[0], metrics={"auc": 0.5}), better, "2026-01-02")
    version = registry.add(better).version

    async def now() -> str | None:
        for _ in range(2):
            await watch.look()
        return watch.version

    assert await now() == shipped
    registry.promote(version, "better")
    assert await now() == version
    registry.rollback(model.identity, "not after all")
    assert await now() == shipped


async def test_a_registry_without_a_predictor_is_waited_for(folder: Path, tmp_path: Path) -> None:
    model, root = model_of(folder), tmp_path / "registry"
    Registry(root).make()
    watch = watch_predictor(load("local.yaml", {"predictor": str(root)}), model)
    assert watch is not None
    assert watch.version is None
    registry = Registry(root)
    registry.promote(registry.add(folder).version, "the first")
    for _ in range(2):
        await watch.look()
    assert watch.version == artifacts.load(folder)[1]


def test_what_an_older_release_has_trained_does_not_keep_a_newer_one_from_starting(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, registry = model_of(folder), Registry(home)
    version = registry.add(folder)
    registry.promote(version.version, "once")
    (version.folder / "model.txt").write_text("of another release")
    monkeypatch.setattr(predictors, "PACKAGED", folder.parent)
    watch = watch_predictor(load("local.yaml"), model)
    assert watch is not None
    assert (watch.version, watch.refused) == (artifacts.load(folder)[1], True)
    named = load("local.yaml", {"predictor": str(home)})
    with pytest.raises(ArtifactError):  # here somebody has asked for it
        watch_predictor(named, model)


RECORDED = {"cache.redis": "redis://nowhere:1/0"}


async def test_whoever_is_to_watch_may_come_change_and_go(folder: Path, home: Path) -> None:
    model = model_of(folder)
    watch = watch_observed(load("local.yaml", RECORDED), model)
    assert watch is not None
    assert (watch.predictor, watch.refused) == (None, False)
    registry = Registry(home)
    version = registry.add(folder).version
    registry.observe(version)
    for _ in range(2):
        await watch.look()
    assert watch.version == version
    registry.observe_none(model.identity)
    for _ in range(2):
        await watch.look()
    assert watch.version is None


def test_who_is_to_watch_may_be_named(folder: Path, home: Path) -> None:
    model = model_of(folder)
    version = Registry(home).add(folder).version
    for name in (str(folder), version[:8]):
        watch = watch_observed(load("local.yaml", RECORDED | {"observe": name}), model)
        assert watch is not None
        assert watch.version == version


def test_nobody_watches_where_nothing_is_recorded_or_none_is_wanted(folder: Path) -> None:
    model = model_of(folder)
    for changes in (RECORDED | {"observe": "none"}, RECORDED | {"records.store": "none"}):
        assert watch_observed(load("local.yaml", changes), model) is None


@pytest.mark.parametrize("name", ["/nowhere", "unheard"])
async def test_who_cannot_watch_stops_nothing(name: str, folder: Path, home: Path) -> None:
    Registry(home).make()
    watch = watch_observed(load("local.yaml", RECORDED | {"observe": name}), model_of(folder))
    assert watch is not None
    assert (watch.predictor, watch.refused) == (None, True)


def test_one_of_another_model_cannot_watch(folder: Path, home: Path) -> None:
    other = replace(model_of(folder), identity="f" * 64)
    watch = watch_observed(load("local.yaml", RECORDED | {"observe": str(folder)}), other)
    assert watch is not None
    assert (watch.predictor, watch.refused) == (None, True)
