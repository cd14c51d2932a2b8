"""Records on disk: Parquet files by day, to be read once each however often they were written.

ROOT/<kind>/date=YYYY-MM-DD/<file>.parquet, where the day (UTC) is that of the record's own time, so
that what was written twice stands in one day. Files are made whole and never changed; compaction
writes larger ones, then removes what it has read, and whoever stops it in between leaves doubles,
which reading takes out.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from predictor import feedback_records, label_records, routing_records
from predictor.errors import RecordsError
from predictor.record_files import RecordFiles

_DAY = "date="
_FULL_ROWS = 50_000  # rows from which a file is left as it is; some 50 MB of features
_BATCH_ROWS = 4_096
_MANY_FILES = 32  # small ones of a day that goes on
_LISTED_AGAIN = 3  # times, when files vanish under a reader


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of record.

    Args:
        name: its folder.
        key: the column that names a record; `at` must be another one.
        schema: of this release.
        decode: what travels → a table, and which of it could not be read.
        upgraded: a table of another release → this one's columns.
    """

    name: str
    key: str
    schema: pa.Schema
    decode: Callable[[Sequence[bytes]], tuple[pa.Table, list[int]]]
    upgraded: Callable[[pa.Table], pa.Table]


REQUESTS = Kind(
    "requests",
    "request_id",
    routing_records.SCHEMA,
    routing_records.decode,
    routing_records.upgraded,
)

LABELS = Kind(
    "labels", "request_id", label_records.SCHEMA, label_records.decode, label_records.upgraded
)

# Labels of requests whose right answer somebody has said: the same, with the column `correct`.
CORRECTNESS = replace(LABELS, name="correctness")

FEEDBACK = Kind(
    "feedback",
    "request_id",
    feedback_records.SCHEMA,
    feedback_records.decode,
    feedback_records.upgraded,
)


class RecordStore:
    """The records below one root. Any number of processes may write and read at the same time.

    Args:
        root: a folder, or any URL that fsspec knows.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._files = RecordFiles(root)

    def append(self, kind: Kind, table: pa.Table) -> int:
        """Writes records, one file for each of their days; gives the number of files.

        Raises:
            OSError: they may be written in part, so all of them have to be written again.
        """
        days = _days(table)
        for day in np.unique(days):
            rows = table.take(pa.array(np.flatnonzero(days == day)))
            name = f"{day}-{uuid4().hex}.parquet"
            self._write(f"{kind.name}/{_DAY}{day}/{name}", rows)
        return len(np.unique(days))

    def reject(self, kind: Kind, encoded: Sequence[bytes], at: float) -> None:
        """Keeps what cannot be read as a record, such as that of a later release, for a human."""
        day = datetime.fromtimestamp(at, UTC).date()
        lines = b"\n".join(line.replace(b"\n", b" ") for line in encoded) + b"\n"
        self._files.write(f"rejected/{_DAY}{day}/{kind.name}-{uuid4().hex}.jsonl", lines)

    def days(self, kind: Kind) -> list[date]:
        """Those that have records, in order."""
        found = []
        for folder in self._files.folders(kind.name):
            _, marker, day = folder.rpartition(_DAY)
            if marker:
                found.append(date.fromisoformat(day))
        return found

    def read(
        self,
        kind: Kind,
        *,
        columns: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        share: float = 1.0,
        broken: Callable[[str], None] = lambda name: None,
    ) -> Iterator[pa.Table]:
        """Every record once, some thousand at a time, by day.

        Memory holds one file and eight bytes for each record of a day.

        Args:
            columns: those wanted; None takes all.
            since, until: of the record's time, the latter excluded.
            share: of the records, chosen by their names: the same ones every time.
            broken: told the name of each file that cannot be read, which is left out.
        """
        wanted = list(kind.schema.names if columns is None else columns)
        needed = list(dict.fromkeys((*wanted, kind.key, "at")))
        for day in self._days_of(kind, since, until):
            seen = Seen(share)
            for table in self._day(kind, day, needed, broken):
                kept = seen.first(table[kind.key])
                at = table["at"]
                for bound, compare in ((since, pc.greater_equal), (until, pc.less)):
                    if bound is not None:
                        kept &= compare(at, pa.scalar(bound, at.type)).to_numpy()
                if kept.any():
                    yield table.filter(pa.array(kept)).select(wanted)

    def count(self, kind: Kind) -> int:
        """Records, each counted once."""
        return sum(len(table) for table in self.read(kind, columns=[kind.key]))

    def rows(
        self, kind: Kind, *, since: datetime | None = None, until: datetime | None = None
    ) -> int:
        """Rows of the days that a window touches, doubles included; cheap."""
        days = self._days_of(kind, since, until)
        return sum(rows for day in days for _, rows in self._sizes(f"{kind.name}/{_DAY}{day}"))

    def compact(self, kind: Kind, today: date) -> int:
        """Puts small files together, of days that are over and where there are many; gives the
        number of files that went.
        """
        removed = 0
        for day in self.days(kind):
            folder = f"{kind.name}/{_DAY}{day}"
            self._files.sweep(folder)
            small = [name for name, rows in self._sizes(folder) if rows < _FULL_ROWS]
            if len(small) < 2 or (day >= today and len(small) < _MANY_FILES):
                continue
            try:
                self._merge(kind, folder, small)
            except FileNotFoundError:  # somebody else is at it
                continue
            for name in small:
                self._files.remove(name)
            removed += len(small)
        return removed

    def forget_before(self, kind: Kind, day: date) -> list[date]:
        """Removes the days before this one; gives them."""
        gone = [old for old in self.days(kind) if old < day]
        for old in gone:
            self._files.remove_folder(f"{kind.name}/{_DAY}{old}")
        return gone

    def _days_of(self, kind: Kind, since: datetime | None, until: datetime | None) -> list[date]:
        """Days that a window touches."""
        first = date.min if since is None else since.date()
        last = date.max if until is None else until.date()
        return [day for day in self.days(kind) if first <= day <= last]

    def _sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """Files that are there and whole, and their rows."""
        for name in self._files.names(folder):
            try:
                with self._files.open(name) as file:
                    rows = pq.read_metadata(file).num_rows
            except (FileNotFoundError, pa.ArrowInvalid):
                continue
            yield name, rows

    def _merge(self, kind: Kind, folder: str, names: Sequence[str]) -> None:
        """Writes the records of these files once each. The same files give the same names."""
        digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:32]
        seen, parts, rows, number = Seen(), list[pa.Table](), 0, 0
        for at, name in enumerate(names):
            table = kind.upgraded(self._table(name))
            parts.append(table.filter(pa.array(seen.first(table[kind.key]))))
            rows += len(parts[-1])
            if rows >= _FULL_ROWS or at == len(names) - 1:
                whole = pa.concat_tables(parts).sort_by("at")
                self._write(f"{folder}/merged-{digest}-{number}.parquet", whole)
                parts, rows, number = [], 0, number + 1

    def _day(
        self, kind: Kind, day: date, columns: Sequence[str], broken: Callable[[str], None]
    ) -> Iterator[pa.Table]:
        """Batches of a day's files; some records twice. Files may be put together meanwhile."""
        folder, done = f"{kind.name}/{_DAY}{day}", set[str]()
        for _ in range(_LISTED_AGAIN):
            vanished = False
            for name in self._files.names(folder):
                if name in done:
                    continue
                try:
                    with self._files.open(name) as file:
                        yield from _batches(kind, file, columns)
                except FileNotFoundError:
                    vanished = True
                    continue
                except (pa.ArrowInvalid, RecordsError):
                    broken(name)
                done.add(name)
            if not vanished:
                return
        raise RecordsError(f"{self.root}/{folder} changes faster than it can be read; try again.")

    def _table(self, name: str) -> pa.Table:
        with self._files.open(name) as file:
            return pq.read_table(file)

    def _write(self, name: str, table: pa.Table) -> None:
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd", row_group_size=_BATCH_ROWS)
        self._files.write(name, file.getvalue())


class Seen:
    """Which records were there already, by 64 bits of their names' hashes.

    Args:
        share: of all names that are let through, always the same ones.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._most = np.uint64(min(share, 1.0) * (2**64 - 1)) if share < 1 else None
        self._sorted: list[NDArray[np.uint64]] = []  # each at least twice as long as the next

    def first(self, names: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Where a name is seen for the first time, and is to be let through."""
        hashes = hashes_of(names)
        unique, first = np.unique(hashes, return_index=True)
        new = np.zeros(len(hashes), dtype=bool)
        new[first] = True
        for known in self._sorted:
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            new &= known[at] != hashes
        if len(unique):
            self._sorted.append(unique)
        while len(self._sorted) > 1 and len(self._sorted[-2]) < 2 * len(self._sorted[-1]):
            self._sorted.append(np.union1d(self._sorted.pop(), self._sorted.pop()))
        return new if self._most is None else new & (hashes <= self._most)


def hashes_of(names: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each string, the same everywhere and always."""
    texts = np.asarray(names.to_pylist(), dtype=np.bytes_)
    if not len(texts):
        return np.empty(0, dtype=np.uint64)
    width = -(-texts.dtype.itemsize // 8) * 8
    words = texts.astype(f"S{width}").view("<u8").reshape(len(texts), -1)
    mixed = np.zeros(len(texts), dtype=np.uint64)
    for word in words.T:  # splitmix64, word by word
        more = (mixed ^ word) + np.uint64(0x9E3779B97F4A7C15)
        more = (more ^ (more >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        more = (more ^ (more >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        more ^= more >> np.uint64(31)
        mixed = np.where(word == 0, mixed, more)  # what pads a shorter name
    return mixed


def _batches(kind: Kind, file: BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(file)
    there = [name for name in columns if name in parquet.schema_arrow.names]
    if kind.key not in there or "at" not in there:
        raise RecordsError(f"no {kind.name}")
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=there):
        yield kind.upgraded(pa.Table.from_batches([batch])).select(columns)


def _days(table: pa.Table) -> NDArray[np.str_]:
    return np.array([f"{at:%Y-%m-%d}" for at in table["at"].to_pylist()], dtype=str)
