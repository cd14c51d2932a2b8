"""A folder of whole files, here or on an object store: each is there completely or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

_PARTIAL = ".partial"
_ABANDONED_S = 3600.0


class RecordFiles:
    """Files below one root, named by their path from there.

    On a local file system a file is written beside its place, synced and renamed; an object store
    shows an object only when all of it is there. Other remote file systems may show parts.

    Args:
        root: a folder, or any URL that fsspec knows.
        clock: Unix time, seconds.
    """

    def __init__(self, root: str, clock: Callable[[], float] = time.time) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(root)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._clock = clock

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces a file. Raises OSError, and then nothing has changed."""
        path = self._path(name)
        if self._local:
            _write_whole(Path(path), data)
        else:
            self._fs.pipe_file(path, data)

    def open(self, name: str) -> BinaryIO:
        """To be read from anywhere in it. Raises FileNotFoundError, or another OSError."""
        return cast(BinaryIO, self._fs.open(self._path(name), "rb"))

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, in order; none if it is not there."""
        return sorted(f"{folder}/{name}" for name in self._in(folder, "file") if _is_whole(name))

    def folders(self, folder: str) -> list[str]:
        """The folders directly in one, in order."""
        return sorted(f"{folder}/{name}" for name in self._in(folder, "directory"))

    def remove(self, name: str) -> None:
        """Harmless if it is gone already."""
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def remove_folder(self, folder: str) -> None:
        try:
            self._fs.rm(self._path(folder), recursive=True)
        except FileNotFoundError:
            return

    def sweep(self, folder: str) -> None:
        """Removes what a writer that was killed has left behind in a folder."""
        path = Path(self._path(folder))
        if not self._local or not path.is_dir():
            return
        for left in path.glob(f".*{_PARTIAL}"):
            try:
                if left.stat().st_mtime < self._clock() - _ABANDONED_S:
                    left.unlink()
            except FileNotFoundError:  # somebody else has swept
                continue

    def _in(self, folder: str, kind: str) -> list[str]:
        try:
            self._fs.invalidate_cache()
            entries = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(e["name"]).name for e in entries if e["type"] == kind]

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _is_whole(name: str) -> bool:
    return not name.startswith((".", "_")) and not name.endswith(_PARTIAL)


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}{_PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)
