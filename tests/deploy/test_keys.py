"""`m3-router keys`, as it is typed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from router.auth import KeysError, new_key, read_key_file


def keys(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], input=typed)


def test_a_new_key_is_printed_once_and_opens_the_door(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    made = keys("new", "alice", "--file", str(file), "--requests-per-minute", "600")
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert key not in file.read_text()
    found = read_key_file(file).find(key)
    assert found is not None
    assert (found.name, found.requests_per_minute, found.operator) == ("alice", 600, False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_entries_are_added_below_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys("new", "alice", "-f", str(file))
    file.write_text("# ours\n" + file.read_text().rstrip())
    file.chmod(0o640)
    assert keys("new", "bob", "-f", str(file), "--operator").exit_code == 0
    assert file.read_text().startswith("# ours\n- name:")
    assert [(key.name, key.operator) for key in read_key_file(file).keys] == [
        ("alice", False),
        ("bob", True),
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_the_first_key_after_everybody_was_shut_out(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("[]\n")
    assert keys("new", "alice", "-f", str(file)).exit_code == 0
    assert [key.name for key in read_key_file(file).keys] == ["alice"]


def test_without_a_file_the_entry_is_shown() -> None:
    made = keys("new", "alice", "--tokens-per-minute", "1000")
    assert made.stdout.strip().startswith("sk-m3-")
    assert "tokens_per_minute: 1000" in made.stderr
    assert made.stdout.strip() not in made.stderr


def test_a_key_of_ones_own_is_hashed(tmp_path: Path) -> None:
    file, own = tmp_path / "keys.yaml", new_key()
    hashed = keys("hash", "alice", "-f", str(file), typed=f"{own}\n")
    assert hashed.exit_code == 0
    assert own not in hashed.output
    assert read_key_file(file).find(own) is not None


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [(("new", "alice"), ""), (("new", "a b"), ""), (("hash", "bob"), "short")],
    ids=["taken name", "odd name", "weak key"],
)
def test_what_cannot_be_added_leaves_the_file_alone(
    tmp_path: Path, arguments: tuple[str, ...], typed: str
) -> None:
    file = tmp_path / "keys.yaml"
    keys("new", "alice", "-f", str(file))
    before = file.read_text()
    failed = keys(*arguments, "-f", str(file), typed=typed)
    assert isinstance(failed.exception, KeysError)
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_list_shows_no_whole_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys("new", "alice", "-f", str(file), "--requests-per-minute", "7")
    listed = keys("list", str(file))
    assert "alice" in listed.stdout
    assert "7" in listed.stdout
    assert read_key_file(file).keys[0].digest.hex() not in listed.stdout
    file.write_text("nonsense")
    assert isinstance(keys("list", str(file)).exception, KeysError)
