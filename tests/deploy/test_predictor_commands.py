"""`m3-router predictors` on a real registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from predictor import artifact as artifacts
from predictor.errors import RegistryError
from predictor.registry import Registry, is_registry
from predictor.train import fit
from tests.predictor import synthetic


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two versions in this user's own, the first of which serves."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = Registry(tmp_path / "m3-router/predictors")
    one = fit(synthetic.outcome_table(300), synthetic.image_table(300), target="agreement", seed=1)
    for number in (1, 2):
        artifacts.save(
            replace(one, metrics={"log_loss": number / 10}), tmp_path / "new", f"2026-01-0{number}"
        )
        made.add(tmp_path / "new")
    made.promote(made.versions()[0].version, "first")
    return made


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["predictors", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_show_promote_rollback_diff(registry: Registry) -> None:
    one, two = (each.version for each in registry.versions())
    listed = json.loads(run("list", "--json"))
    assert [(row["version"], row["serves"]) for row in listed] == [(one, True), (two, False)]
    assert one in run("list")
    assert run("promote", two[:10], "--reason", "try it") == f"{two} serves, in place of {one}.\n"
    shown = json.loads(run("show", two, "--json"))
    assert shown["serves"]
    assert [event["reason"] for event in shown["history"]] == ["try it"]
    assert "try it" in run("show", two)
    assert json.loads(run("diff", one, two, "--json"))["log_loss"] == [0.1, 0.2]
    assert "log_loss" in run("diff", one, two)
    assert run("rollback") == f"{one} serves, in place of {two}.\n"
    assert run("rollback") == f"none serves, in place of {one}.\n"


def test_another_registry_can_be_named(registry: Registry, tmp_path: Path) -> None:
    assert run("list", "--registry", str(tmp_path / "other"), "--json") == "[]\n"
    assert run("list", "--registry", str(tmp_path / "other")) == "No predictors there.\n"


def test_an_empty_registry_can_be_made(tmp_path: Path) -> None:
    assert "is a registry" in run("init", str(tmp_path / "new"))
    assert is_registry(tmp_path / "new")


def test_what_is_not_there_is_told(registry: Registry) -> None:
    for arguments in (["promote", "zzz"], ["rollback", "--model", "zzz"]):
        with pytest.raises(RegistryError):
            CliRunner().invoke(app, ["predictors", *arguments], catch_exceptions=False)


def test_one_version_may_watch_and_be_relieved(registry: Registry) -> None:
    one, two = (each.version for each in registry.versions())
    assert f"{two} watches" in run("observe", two[:6])
    rows = {row["version"]: row for row in json.loads(run("list", "--json"))}
    assert [rows[v]["serves"] for v in (one, two)] == [True, False]
    assert [rows[v]["watches"] for v in (one, two)] == [False, True]
    run("observe", one)
    assert [each.watches for each in registry.versions()] == [True, False]
    assert "watches" not in run("list")  # it serves as well, which is more
    run("observe", "none")
    run("observe", "none")
    assert not any(each.watches for each in registry.versions())
    assert len(registry.versions()) == 2
