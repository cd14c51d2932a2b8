"""The import rule: deploy → router → predictor → m3_backend, and who may import torch and Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "m3_backend": set[str](),
    "predictor": {"m3_backend"},
    "router": {"predictor", "m3_backend"},
    "deploy": {"router", "predictor", "m3_backend"},
}
HEAVY = ("torch", "transformers", "ray", "vllm")
TORCH = {"torch", "transformers", "vllm"}
# The border types are used by every room, so they must not pull torch in.
LIGHT_BACKEND = {"__init__", "scales", "messages", "errors", "costs", "shapes"}
# Run the model themselves, so they need an engine; everything else in predictor/ works without.
OFFLINE = {"predictor.label", "predictor.labeller"}


def modules() -> list[Path]:
    return sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import, line {node.lineno}"
            yield (node.module or "").split(".")[0]


def forbidden(path: Path) -> set[str]:
    """What this file must not import."""
    room = path.relative_to(ROOT).parts[0]
    rooms = set(MAY_IMPORT) - MAY_IMPORT[room] - {room}
    if room == "deploy":
        return rooms | TORCH
    light = path.parent == ROOT / "m3_backend" and path.stem in LIGHT_BACKEND
    if room == "m3_backend" and not light and path.stem != "__init__":
        return rooms | {"ray"}
    return rooms | TORCH | {"ray"}


def test_the_rule_sees_every_room() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert not forbidden(path) & set(imported(path))


BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Refuse())
"""


def run_without(blocked: tuple[str, ...], statement: str) -> subprocess.CompletedProcess[str]:
    """Runs `statement` in a fresh interpreter that cannot import the `blocked` packages."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + statement],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_router_and_predictor_serve_without_torch_and_ray() -> None:
    """Catches what the syntax tree cannot: a library that pulls torch in by itself."""
    names = {
        dotted(path)
        for path in modules()
        if path.relative_to(ROOT).parts[0] in {"router", "predictor"}
    }
    names |= {f"m3_backend.{name}" for name in LIGHT_BACKEND}
    script = "import importlib\n" + "\n".join(
        f"importlib.import_module({name!r})" for name in sorted(names - OFFLINE)
    )
    result = run_without(HEAVY, script)
    assert result.returncode == 0, result.stderr


def test_the_command_line_starts_without_the_heavy_parts() -> None:
    """`m3-router --help` has to answer at once."""
    result = run_without((*HEAVY, "lightgbm", "sklearn", "matplotlib"), "import deploy.cli")
    assert result.returncode == 0, result.stderr


def test_a_blocked_package_is_noticed() -> None:
    assert run_without(("torch",), "import torch").returncode != 0
