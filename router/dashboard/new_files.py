"""Records as they appear: each file is read once, each record given once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import date
from typing import BinaryIO

import pyarrow as pa

from predictor.record_files import RecordFiles
from predictor.record_store import Kind, Seen

logger = logging.getLogger("m3_router.dashboard")
_DAY = "date="

Days = Callable[[date], bool]


def every_day(_: date) -> bool:
    return True


class NewFiles:
    """The records of one kind that were not there at the last look.

    A file that replaces others (compaction) brings nothing new, because each record's name is
    remembered, eight bytes each. A file that is gone or broken is left out, as every reader of
    records does.

    Args:
        read: what is needed of a file; the record's name is among it.
        days: which days (UTC) are looked at.
    """

    def __init__(
        self,
        files: RecordFiles,
        kind: Kind,
        read: Callable[[BinaryIO], pa.Table],
        days: Days = every_day,
        *,
        newest_first: bool,
    ) -> None:
        self._files, self._kind, self._read_file, self._days = files, kind, read, days
        self._newest_first = newest_first
        self._read: dict[str, set[str]] = {}
        self._seen: dict[str, Seen] = {}

    def tables(self) -> Iterator[pa.Table]:
        """What is new, by day and file; none of them empty."""
        folders = [f for f in self._files.folders(self._kind.name) if self._is_wanted(f)]
        for folder in sorted(folders, reverse=self._newest_first):
            yield from self._of_day(folder)

    def _is_wanted(self, folder: str) -> bool:
        _, marker, day = folder.rpartition(_DAY)
        try:
            return bool(marker) and self._days(date.fromisoformat(day))
        except ValueError:  # somebody else's folder
            return False

    def _of_day(self, folder: str) -> Iterator[pa.Table]:
        done = self._read.setdefault(folder, set())
        there = set(self._files.names(folder))
        for name in sorted(there - done):
            try:
                with self._files.open(name) as file:
                    table = self._read_file(file)
            except FileNotFoundError:  # put together with others meanwhile
                continue
            except (pa.ArrowException, OSError, KeyError) as error:
                logger.warning("records in %s cannot be read: %r", name, error)
            else:
                seen = self._seen.setdefault(folder, Seen())
                fresh = table.filter(pa.array(seen.first(table[self._kind.key])))
                if len(fresh):
                    yield fresh
            done.add(name)
        done &= there
