from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from router.auth import (
    Key,
    KeyRing,
    KeysError,
    KeyStore,
    digest_of_key,
    new_key,
    open_keys,
    read_environment,
    read_key_file,
)
from router.config import AccessConfig

ALICE, BOB = new_key(), new_key()
DEFAULTS = AccessConfig(keys="x", requests_per_minute=60, tokens_per_minute=1000)


def entry(name: str, key: str, *more: str) -> str:
    lines = (f"name: {name}", f"sha256: {digest_of_key(key).hex()}", *more)
    return "- " + "\n  ".join(lines) + "\n"


def file_with(folder: Path, text: str) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    return path


def test_new_keys_are_long_and_never_the_same() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-m3-") and len(key) > 45 for key in keys)


def test_a_key_file_holds_no_keys(tmp_path: Path) -> None:
    path = file_with(tmp_path, entry("alice", ALICE) + entry("bob", BOB, "operator: true"))
    ring = read_key_file(path)
    assert ALICE not in path.read_text()
    assert [(key.name, key.operator) for key in ring.keys] == [("alice", False), ("bob", True)]
    assert ring.find(ALICE) is ring.keys[0]
    assert ring.find(BOB) is ring.keys[1]


@pytest.mark.parametrize("guess", ["", "x", ALICE[:-1], ALICE + "x", ALICE.lower(), "\udcff", "é"])
def test_what_is_not_a_key_finds_none(guess: str) -> None:
    assert KeyRing([Key("alice", digest_of_key(ALICE))]).find(guess) is None


def test_a_keys_own_limits_win_and_null_is_unlimited(tmp_path: Path) -> None:
    own = "requests_per_minute: 5", "tokens_per_minute: null"
    path = file_with(tmp_path, entry("alice", ALICE, *own) + entry("bob", BOB))
    alice, bob = read_key_file(path, DEFAULTS).keys
    assert (alice.requests_per_minute, alice.tokens_per_minute) == (5, None)
    assert (bob.requests_per_minute, bob.tokens_per_minute) == (60, 1000)


GOOD = entry("alice", ALICE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "valid list"),
        ("[", "not valid YAML"),
        ("alice: key", "valid list"),
        ("2026-13-45", "not valid YAML"),
        ("- name: alice", "0.sha256: Field required"),
        (entry("alice", ALICE, "limit: 3"), "0.limit: Extra inputs"),
        (entry("alice", ALICE, "requests_per_minute: 0"), "0.requests_per_minute: "),
        (entry("a b", ALICE), "0.name: "),
        ("- {name: alice, sha256: abc}", "0.sha256: "),
        (GOOD + entry("alice", BOB), "same name"),
        (GOOD + entry("bob", ALICE), "same digest"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_and_no_hash(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(KeysError) as caught:
        read_key_file(file_with(tmp_path, text))
    assert message in caught.value.message
    assert digest_of_key(ALICE).hex() not in caught.value.message


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        open_keys(AccessConfig(keys="/nowhere/keys.yaml"))


def test_an_empty_list_is_nobody(tmp_path: Path) -> None:
    assert read_key_file(file_with(tmp_path, "[]")).keys == ()


def test_keys_from_the_environment() -> None:
    hashed = f"sha256:{digest_of_key(BOB).hex()}"
    ring = read_environment("KEYS", DEFAULTS, {"KEYS": f" alice={ALICE},\n bob={hashed} "})
    found = ring.find(ALICE)
    assert found is not None
    assert (found.name, found.tokens_per_minute) == ("alice", 1000)
    assert ring.find(BOB) is ring.keys[1]


@pytest.mark.parametrize("value", ["", " , ", "alice", "alice=", "=x" * 40, "alice=sha256:12"])
def test_a_wrong_variable_is_never_no_keys_at_all(value: str) -> None:
    with pytest.raises(KeysError, match="KEYS"):
        read_environment("KEYS", DEFAULTS, {"KEYS": value})


def test_a_key_that_could_be_guessed_is_refused_and_not_repeated() -> None:
    with pytest.raises(KeysError, match="fewer than 32") as caught:
        read_environment("KEYS", DEFAULTS, {"KEYS": "alice=hunter2"})
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("value", [f"{ALICE}==", f"{ALICE}=x", f"alice={ALICE},{BOB}="])
def test_a_key_without_a_name_is_not_repeated_as_one(value: str) -> None:
    with pytest.raises(KeysError, match="KEYS: entry") as caught:
        read_environment("KEYS", DEFAULTS, {"KEYS": value})
    assert ALICE not in caught.value.message
    assert BOB not in caught.value.message


@pytest.mark.parametrize("key", ["x" * 513, "\u00e9" * 40])
def test_a_key_that_no_header_can_bring_is_refused(key: str) -> None:
    with pytest.raises(KeysError, match="could not send"):
        read_environment("KEYS", DEFAULTS, {"KEYS": f"alice={key}"})


def test_no_keys_are_configured() -> None:
    assert open_keys(AccessConfig()) is None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store_of(path: Path, clock: Clock) -> KeyStore:
    return KeyStore(
        lambda: read_key_file(path),
        lambda: (path.stat().st_mtime_ns, path.stat().st_size),
        clock=clock,
    )


def write_later(path: Path, text: str) -> None:
    """As an editor does, with another time stamp however coarse the file system's are."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    os.utime(draft, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    draft.replace(path)


async def test_keys_change_while_the_service_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = file_with(tmp_path, GOOD), Clock()
    store = store_of(path, clock)
    assert await store.find(ALICE)
    write_later(path, entry("bob", BOB))
    assert await store.find(ALICE)  # not yet looked at again
    clock.now = 1.0
    assert await store.find(BOB)
    assert await store.find(ALICE) is None
    assert "1 are in force" in caplog.text


@pytest.mark.parametrize("broken", ["", "- name: alice", "[", None])
async def test_broken_keys_change_nothing_and_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    path, clock = file_with(tmp_path, GOOD), Clock()
    store = store_of(path, clock)
    if broken is None:
        path.rename(tmp_path / "away")
    else:
        write_later(path, broken)
    for second in (1.0, 2.0, 3.0):
        clock.now = second
        assert await store.find(ALICE)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the old ones stay" in errors[0].getMessage()
    if broken is None:
        (tmp_path / "away").rename(path)
    write_later(path, entry("bob", BOB))
    clock.now = 4.0
    assert await store.find(BOB)


async def test_a_change_is_not_lost_with_the_request_that_noticed_it() -> None:
    """A client may leave while the new file is being read; a revoked key must not live on."""
    clock, go_on, reading = Clock(), threading.Event(), threading.Event()
    keys = [Key("alice", digest_of_key(ALICE))]

    def read() -> KeyRing:
        reading.set()
        assert go_on.wait(30)
        return KeyRing(keys)

    go_on.set()
    store = KeyStore(read, lambda: len(keys), clock=clock)
    keys.clear()
    go_on.clear()
    reading.clear()
    clock.now = 1.0
    noticed = asyncio.ensure_future(store.find(ALICE))
    await asyncio.to_thread(reading.wait, 30)
    assert await store.find(ALICE)  # the others do not wait
    noticed.cancel()
    await asyncio.wait([noticed])
    go_on.set()
    clock.now = 2.0
    assert await store.find(ALICE) is None


async def test_the_configured_file_is_watched(tmp_path: Path) -> None:
    path = file_with(tmp_path, GOOD)
    store = open_keys(AccessConfig(keys=str(path)))
    assert store is not None
    store._clock = Clock()
    store._check_at = 0.0
    write_later(path, entry("bob", BOB))
    assert await store.find(BOB)
