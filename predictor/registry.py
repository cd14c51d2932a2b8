"""Versions of predictors in a folder, and which of them serves.

ROOT/REGISTRY                 says that this is one, and not an artefact that lost its files
ROOT/<model>/<version>/       an artefact, with the report of its training beside it
ROOT/<model>/CURRENT          a link to the version that serves; switched in one step
ROOT/<model>/OBSERVED         a link to the version that only watches, if one does
ROOT/<model>/history.jsonl    every promotion and rollback, with its reason

<model> is the start of the checkpoint's identity, so that predictors of different models live side
by side and none is ever offered to another one. A running service follows CURRENT
(router/reload.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from predictor import artifact as artifacts
from predictor.errors import ArtifactError, RegistryError
from predictor.whole_file import whole_file

CURRENT = "CURRENT"
OBSERVED = "OBSERVED"
_MARK = "REGISTRY"
_HISTORY = "history.jsonl"
_LOCK = ".lock"
_MODEL_DIGITS = 16

Action = Literal["promote", "rollback"]


@dataclass(frozen=True, slots=True)
class Version:
    """One predictor of a registry.

    Args:
        folder: of the artefact.
        manifest: what it says of itself, the hashed part.
        created: when it was trained, ISO 8601.
        serves: whether CURRENT points to it.
        watches: whether OBSERVED does.
    """

    version: str
    folder: Path
    manifest: dict[str, Any]
    created: str
    serves: bool
    watches: bool

    @property
    def model_identity(self) -> str:
        return str(self.manifest["model_identity"])


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history.

    Args:
        version: that serves from then on; None after the first one was rolled back.
        before: that served until then.
    """

    at: str
    action: Action
    version: str | None
    before: str | None
    reason: str


class Registry:
    """The predictors below one root. Safe to use from several processes of one file system.

    Args:
        clock: for the history.
    """

    def __init__(
        self, root: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.root = root
        self._clock = clock

    def make(self) -> None:
        """Makes the folder a registry, without any predictor yet. Harmless if it is one."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / _MARK).touch()

    def versions(self) -> list[Version]:
        """All that can be read, by model, oldest first. What is broken is left out."""
        found = []
        for folder in sorted(self.root.glob("*/*")):
            if (
                folder.name not in (CURRENT, OBSERVED)
                and folder.is_dir()
                and not folder.name.startswith(".")
            ):
                try:
                    found.append(self._version(folder))
                except ArtifactError:
                    continue
        return sorted(found, key=lambda each: (each.model_identity, each.created, each.version))

    def find(self, name: str) -> Version:
        """The version whose name begins so.

        Raises:
            RegistryError: none, or more than one.
        """
        found = [each for each in self.versions() if name and each.version.startswith(name)]
        if len(found) != 1:
            known = ", ".join(each.version for each in self.versions()) or "none"
            what = "no predictor" if not found else "more than one predictor"
            raise RegistryError(f"There is {what} {name!r} in {self.root}; it has {known}.")
        return found[0]

    def current(self, model_identity: str) -> Version | None:
        """The one that serves a model. Raises ArtifactError if CURRENT points to what is broken."""
        link = self.link(model_identity)
        return self._version(link.resolve()) if link.is_symlink() else None

    def link(self, model_identity: str) -> Path:
        """Where CURRENT of a model is, or would be."""
        return self._home(model_identity) / CURRENT

    def observed_link(self, model_identity: str) -> Path:
        """Where OBSERVED of a model is, or would be."""
        return self._home(model_identity) / OBSERVED

    def observe(self, name: str) -> Version:
        """Lets a version watch beside the one that serves.

        Raises:
            RegistryError: there is no such one.
            ArtifactError: it is broken, or of features that this release does not compute.
        """
        version = self.find(name)
        artifacts.load(version.folder)
        with self._locked(version.folder.parent):
            _point(version.folder.parent / OBSERVED, version.version)
        return version

    def observe_none(self, model_identity: str) -> None:
        """Lets none watch. Harmless if none does."""
        self.observed_link(model_identity).unlink(missing_ok=True)

    def add(self, artifact: Path) -> Version:
        """Takes in a copy of an artefact, with what lies beside its files; it does not serve yet.

        Raises:
            ArtifactError: it is not a sound artefact.
        """
        loaded, version = artifacts.load(artifact)
        self.make()
        home = self._home(loaded.source.model_identity)
        home.mkdir(exist_ok=True)
        target = home / version
        with self._locked(home):
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=home, prefix=".new.") as workspace:
                    copy = Path(workspace, version)
                    shutil.copytree(artifact, copy)
                    copy.rename(target)
        return self._version(target)

    def promote(self, name: str, reason: str) -> Event:
        """Lets a version serve.

        Raises:
            RegistryError: there is no such one.
            ArtifactError: it is broken, or of features that this release does not compute.
        """
        version = self.find(name)
        artifacts.load(version.folder)  # all of it, hashes included
        home = version.folder.parent
        with self._locked(home):
            return self._switch(home, "promote", version.version, reason)

    def rollback(self, model_identity: str, reason: str) -> Event:
        """Lets the version serve that was promoted before; none if there was none.

        Raises:
            RegistryError: none serves.
        """
        home = self._home(model_identity)
        if not home.is_dir():
            raise RegistryError(f"{self.root} has no predictor of that model.")
        with self._locked(home):
            stack = _serving(self.history(model_identity))
            link = home / CURRENT
            if link.is_symlink() and stack[-1:] != [link.readlink().name]:
                stack.append(link.readlink().name)  # whoever switched it did not live to tell
            if not stack:
                raise RegistryError(f"No predictor serves in {home}; nothing can be rolled back.")
            return self._switch(home, "rollback", stack[-2] if len(stack) > 1 else None, reason)

    def history(self, model_identity: str) -> list[Event]:
        """Every promotion and rollback of a model's predictors, oldest first."""
        try:
            lines = (self._home(model_identity) / _HISTORY).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Event(**json.loads(line)) for line in lines]

    def models(self) -> list[str]:
        """Identities of the models that have predictors."""
        return sorted({each.model_identity for each in self.versions()})

    def _home(self, model_identity: str) -> Path:
        return self.root / model_identity[:_MODEL_DIGITS]

    def _version(self, folder: Path) -> Version:
        manifest = artifacts.read_manifest(folder)
        return Version(
            version=manifest["sha256"][: artifacts.VERSION_DIGITS],
            folder=folder,
            manifest=manifest["content"],
            created=str(manifest.get("created", "")),
            serves=_points_to(folder.parent / CURRENT, folder),
            watches=_points_to(folder.parent / OBSERVED, folder),
        )

    def _switch(self, home: Path, action: Action, version: str | None, reason: str) -> Event:
        link = home / CURRENT
        before = link.readlink().name if link.is_symlink() else None
        event = Event(self._clock().isoformat(), action, version, before, reason)
        if version is None:
            link.unlink(missing_ok=True)
        else:
            _point(link, version)
        history = home / _HISTORY
        past = history.read_text() if history.is_file() else ""
        with whole_file(history) as partial:
            partial.write_text(past + json.dumps(asdict(event)) + "\n")
        return event

    @contextmanager
    def _locked(self, home: Path) -> Iterator[None]:
        with (home / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def is_registry(folder: Path) -> bool:
    """Whether a folder holds versions rather than one artefact."""
    return (folder / _MARK).is_file()


def difference(one: Version, other: Version) -> dict[str, tuple[Any, Any]]:
    """What two versions say differently of themselves: facts, metrics, prices by bound."""
    left, right = _told(one), _told(other)
    names = list(dict.fromkeys((*left, *right)))
    pairs = {name: (left.get(name), right.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _points_to(link: Path, folder: Path) -> bool:
    return link.is_symlink() and link.resolve() == folder.resolve()


def _point(link: Path, version: str) -> None:
    """Switches a link in one step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(version)
    fresh.replace(link)


def _told(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    facts = {name: manifest[name] for name in ("model", "target", "outcomes", "confidence")}
    thresholds = manifest["thresholds"]
    prices = zip(thresholds["bounds"], thresholds["prices"], strict=True)
    return {
        "created": version.created,
        **facts,
        "features": manifest["features"]["version"],
        **manifest["metrics"],
        **{f"price at {bound:g}": price for bound, price in prices},
    }


def _serving(history: list[Event]) -> list[str]:
    """Which versions served one after the other, those rolled back taken out."""
    stack: list[str] = []
    for event in history:
        if event.action == "rollback":
            stack.pop()
        elif event.version is not None:
            stack.append(event.version)
    return stack
