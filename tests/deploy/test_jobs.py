"""What retrains by itself: every manifest can be read, and the command in it does what it says."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import deploy
from deploy.cli import app
from predictor.label_records import decode
from predictor.record_store import LABELS, RecordStore
from predictor.registry import Registry
from tests.predictor.test_retrain import COUNT, label

JOBS = Path(deploy.__file__).parent / "jobs"
MOST_S = 300


def read(name: str) -> Any:
    return yaml.safe_load((JOBS / name).read_text(encoding="utf-8"))


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((JOBS / name).read_text(encoding="utf-8"))
    return parser


def ray_job() -> str:
    spec = read("retrain-rayjob.yaml")["spec"]
    return str(spec["entrypoint"])


def cron_job() -> str:
    pod = read("retrain-cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"] == ["sh", "-c"]
    [script] = container["args"]
    return str(script)


def systemd() -> str:
    """As systemd would run it, with the path of this environment."""
    start = unit("m3-router-retrain.service")["Service"]["ExecStart"]
    return re.sub(r"PATH=\S+", "PATH=$PATH", start)


def crontab() -> str:
    lines = (JOBS / "retrain.crontab").read_text(encoding="utf-8").splitlines()
    [entry] = [line for line in lines if line[:1].isdigit()]
    return entry.split(maxsplit=5)[5]


COMMANDS = {"RayJob": ray_job, "CronJob": cron_job, "systemd": systemd, "crontab": crontab}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Enough labels of the last hour for a first predictor."""
    store = RecordStore(str(tmp_path / "records"))
    began = time.time() - 3_600
    rows = [label(row, at=round((began + row / 10) * 1e6)) for row in range(3 * COUNT)]
    store.append(LABELS, decode(rows)[0])
    return tmp_path / "records"


def shell(command: str, **environment: str) -> str:
    """What a shell prints that runs it."""
    ran = subprocess.run(
        ["sh", "-c", command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_manifest_retrains_on_the_last_fortnight(name: str, tmp_path: Path) -> None:
    """What the command is called with, and that it takes such arguments."""
    spy = tmp_path / "m3-router"
    spy.write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
    spy.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    told = shell(COMMANDS[name](), PATH=path, M3_RECORDS="/the records", M3_REGISTRY="/there")
    first, *arguments = told.splitlines()
    assert first == "retrain"
    command: Any = typer.main.get_command(app)
    given = command.commands["retrain"].make_context("retrain", arguments).params
    assert (given["since"], given["refusal_ok"], given["dry_run"]) == ("14d", True, False)
    elsewhere = name in ("RayJob", "CronJob")  # the others are this user's own service's
    assert given["records"] == ("/the records" if elsewhere else None)
    assert given["registry"] == (Path("/there") if elsewhere else None)


def test_the_command_publishes_and_a_refusal_is_no_failure(records: Path, tmp_path: Path) -> None:
    registry = tmp_path / "predictors"
    environment = {
        "M3_RECORDS": str(records),
        "M3_REGISTRY": str(registry),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(deploy.__file__).parents[1]),
    }
    # The bound of 5% that a service has takes more labels than a test should train on.
    command = ray_job() + " --max-regret 0.1"
    assert "It serves now" in shell(command, **environment)
    assert "refused, recent: not better" in shell(command, **environment)
    [version] = Registry(registry).versions()
    assert version.serves


def test_manifests_are_of_kinds_that_exist() -> None:
    job, cron = read("retrain-rayjob.yaml"), read("retrain-cronjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert (cron["apiVersion"], cron["kind"]) == ("batch/v1", "CronJob")
    assert "rayClusterSpec" not in job["spec"]  # a selector takes a cluster that is there
    assert set(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]) == {
        "M3_RECORDS",
        "M3_REGISTRY",
    }
    assert len(cron["spec"]["schedule"].split()) == 5
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert pod["restartPolicy"] == "Never"


def test_the_timer_starts_the_service_of_its_name() -> None:
    timer = unit("m3-router-retrain.timer")
    assert timer["Timer"]["OnCalendar"]
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert unit("m3-router-retrain.service")["Service"]["Type"] == "oneshot"
    assert shlex.split(systemd())[0] == "/usr/bin/env"
