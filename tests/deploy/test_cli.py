"""The command line: what it prints and its exit status. Servers are real, models are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from m3_backend.errors import OverloadedError
from tests.conftest import unused_port
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import app_of, picture, serving

GOLDEN = Path(__file__).parents[1] / "m3_backend" / "golden"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "m3-router", *arguments],
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    file.write_bytes(picture())
    return file


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(app_of(FakeBackend(), FakePredictor())) as url:
        yield url


def test_help_names_every_command() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in (
        "serve",
        "ask",
        "route",
        "verify",
        "config",
        "version",
        "label",
        "train-predictor",
    ):
        assert f" {command} " in shown.stdout


def test_ask_shows_answer_scale_reason_probabilities_and_times(image: Path, url: str) -> None:
    asked = run("ask", image, "What colour is it?", "--url", url)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("a red square\n")
    assert "scale 36, because: predicted (regret bound 0.05, predictor fake-1)" in asked.stdout
    assert "0.900" in asked.stdout
    assert "routing" in asked.stdout
    assert "features from miss" in asked.stdout


def test_ask_passes_its_options_on(image: Path, url: str) -> None:
    options = ("--scale", "9", "--max-tokens", "2", "--json", "--url", url)
    told = json.loads(run("ask", image, "What?", *options).stdout)
    assert told["answer"]["m3"]["scale"] == [9]
    assert told["answer"]["m3"]["reason"] == ["forced"]
    loose = json.loads(
        run("ask", image, "What?", "--max-regret", "0.2", "--json", "--url", url).stdout
    )
    assert loose["answer"]["m3"]["max_regret"] == 0.2


def test_route_explains_without_answering(image: Path) -> None:
    backend = FakeBackend()
    with serving(app_of(backend, FakePredictor())) as url:
        explained = run("route", image, "What?", "--url", url)
        told = json.loads(run("route", image, "What?", "--url", url, "--json").stdout)
    assert explained.returncode == 0, explained.stderr
    assert "→" in explained.stdout
    assert told["images"][0]["scale"] == 36
    assert not backend.requests


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    [line] = result.stderr.splitlines()
    return line


def test_the_callers_mistakes_are_one_line_and_status_2(image: Path, url: str) -> None:
    scale = run("ask", image, "What?", "--scale", "100", "--url", url)
    assert scale.returncode == 2
    assert "use one of 1, 9, 36, 144, 576" in one_line(scale)
    setting = run("serve", "--set", "serve.prot=1")
    assert setting.returncode == 2
    assert "did you mean port?" in one_line(setting)
    assert run("serve", "--set", "port").returncode == 2
    assert run("ask", "nowhere.png", "What?").returncode == 2
    assert run("label", "out.parquet").returncode == 2


def test_failures_are_one_line_and_status_1(image: Path) -> None:
    nobody = run("ask", image, "What?", "--url", f"http://127.0.0.1:{unused_port()}")
    assert nobody.returncode == 1
    assert "is it running?" in one_line(nobody)
    with serving(app_of(FakeBackend(error=OverloadedError("Full.")), None)) as url:
        full = run("ask", image, "What?", "--url", url)
    assert full.returncode == 1
    assert "Full. (overloaded)" in one_line(full)


def test_a_broken_predictor_is_found_before_anything_starts(tmp_path: Path) -> None:
    refused = run("serve", "--predictor", tmp_path)
    assert refused.returncode == 1
    assert str(tmp_path) in one_line(refused)


def test_version_can_be_read_by_machines() -> None:
    versions: dict[str, Any] = json.loads(run("version", "--json").stdout)
    assert {"m3-router", "ray", "torch", "python"} <= set(versions)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A checkpoint of its own with a reference beside it."""
    return shutil.copytree(GOLDEN / "llava15-m3", tmp_path / "checkpoint")


def test_verify_agrees_with_a_reference_and_notices_another(reference: Path) -> None:
    agreed = run("verify", reference)
    assert agreed.returncode == 0, agreed.stderr + agreed.stdout
    assert "agrees with its reference" in " ".join(agreed.stdout.split())
    tensors = load_file(reference / "expected.safetensors")
    name = next(key for key in tensors if key.startswith("logits."))
    tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, reference / "expected.safetensors")
    disagreed = run("verify", reference, "--json")
    assert disagreed.returncode == 1
    assert json.loads(disagreed.stdout)["passed"] is False


def test_verify_of_something_else_is_one_line(tmp_path: Path) -> None:
    nothing = run("verify", tmp_path)
    assert nothing.returncode == 1
    assert str(tmp_path) in one_line(nothing)


def test_config_prints_what_is_in_force_and_no_secret() -> None:
    url = "redis://:hunter2@redis.internal:6379/0"
    changes = ("serve.port=9000", f"cache.redis={url}", "cache.secret=hunter2")
    shown = run("config", *(part for change in changes for part in ("--set", change)))
    assert shown.returncode == 0, shown.stderr
    assert "hunter2" not in shown.stdout
    settings = yaml.safe_load(shown.stdout)
    assert settings["serve"]["port"] == 9000
    assert settings["cache"]["redis"] == "redis://***@redis.internal:6379/0"
    assert settings["router"]["telemetry"]["otlp_endpoint"] is None


def test_config_refuses_what_the_service_would_refuse() -> None:
    refused = run("config", "--set", "serve.prot=9000")
    assert refused.returncode == 2
    assert "did you mean port?" in refused.stderr
