"""Records on real disks: once each, whole files only, whatever happens to those who write."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from predictor import record_files, record_store, routing_records
from predictor.record_store import REQUESTS, RecordStore, Seen, hashes_of
from tests.predictor.test_routing_records import record

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0


def table(*names: str, at: float = NOON) -> pa.Table:
    return routing_records.decode([routing_records.encode(record(n, at)) for n in names])[0]


def names_in(store: RecordStore, **options: object) -> list[str]:
    columns = ["request_id"]
    read = store.read(REQUESTS, columns=columns, **options)  # type: ignore[arg-type]
    return sorted(name for part in read for name in part["request_id"].to_pylist())


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path}")


def test_records_lie_by_the_day_they_arrived(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    two_days = pa.concat_tables([table("a"), table("b", at=NOON + DAY_S)])
    assert store.append(REQUESTS, two_days) == 2
    folders = {name.rpartition("/")[0] for name in files(tmp_path)}
    assert folders == {"requests/date=2026-11-25", "requests/date=2026-11-26"}
    assert store.days(REQUESTS) == [date(2026, 11, 25), date(2026, 11, 26)]
    assert pq.read_table(tmp_path).num_rows == 2  # as any tool reads them


def test_what_was_written_twice_is_read_once(store: RecordStore) -> None:
    store.append(REQUESTS, table("a", "b", "a"))
    store.append(REQUESTS, table("b", "c"))
    assert names_in(store) == ["a", "b", "c"]
    assert store.count(REQUESTS) == 3


def test_a_window_of_time_is_read(store: RecordStore) -> None:
    for name, at in (("early", NOON - DAY_S), ("noon", NOON), ("late", NOON + 60)):
        store.append(REQUESTS, table(name, at=at))
    noon = datetime.fromtimestamp(NOON, UTC)
    later = datetime.fromtimestamp(NOON + 60, UTC)
    assert names_in(store, since=noon) == ["late", "noon"]
    assert names_in(store, since=noon, until=later) == ["noon"]


def test_a_share_is_always_the_same_records(store: RecordStore) -> None:
    everything = [f"{number:032x}" for number in range(400)]
    store.append(REQUESTS, table(*everything[:250]))
    store.append(REQUESTS, table(*everything[150:]))
    some = names_in(store, share=0.25)
    assert 60 < len(some) < 140
    assert some == names_in(store, share=0.25)
    assert set(some) < set(names_in(store, share=0.5))


def test_compaction_makes_one_file_of_a_day_and_loses_nothing(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    for name in "abcab":
        store.append(REQUESTS, table(name))
    assert store.compact(REQUESTS, date(2026, 11, 25)) == 0  # the day goes on
    assert store.compact(REQUESTS, date(2026, 11, 26)) == 5
    assert len(files(tmp_path)) == 1
    assert names_in(store) == ["a", "b", "c"]
    assert store.compact(REQUESTS, date(2026, 11, 26)) == 0


def test_a_day_that_goes_on_is_compacted_when_it_has_many_files(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    wanted = [f"{number:02}" for number in range(40)]
    for name in wanted:
        store.append(REQUESTS, table(name))
    assert store.compact(REQUESTS, date(2026, 11, 25)) == 40
    assert names_in(store) == wanted


def test_large_files_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_store, "_FULL_ROWS", 3)
    store = RecordStore(str(tmp_path))
    for names in (("a", "b", "c"), ("d",), ("e",), ("f",), ("g",)):
        store.append(REQUESTS, table(*names))
    [large] = [name for name in files(tmp_path) if pq.read_metadata(tmp_path / name).num_rows == 3]
    assert store.compact(REQUESTS, date(2026, 11, 26)) == 4
    assert large in files(tmp_path)
    assert len(files(tmp_path)) == 3
    assert names_in(store) == list("abcdefg")


def test_compaction_that_stops_before_it_removes_is_harmless(tmp_path: Path) -> None:
    """Twice: what two at a time write has one name, and doubles are read once."""
    store = RecordStore(str(tmp_path))
    for name in "abc":
        store.append(REQUESTS, table(name))
    folder = "requests/date=2026-11-25"
    small = files(tmp_path)
    store._merge(REQUESTS, folder, small)
    store._merge(REQUESTS, folder, small)
    assert len(files(tmp_path)) == 4
    assert names_in(store) == ["a", "b", "c"]
    store.compact(REQUESTS, date(2026, 11, 26))
    assert names_in(store) == ["a", "b", "c"]
    assert len(files(tmp_path)) == 1


def test_a_reader_outruns_compaction(tmp_path: Path) -> None:
    """Files go while they are being read; what they held stands in the new one."""
    store = RecordStore(str(tmp_path))
    for name in "abcd":
        store.append(REQUESTS, table(name))
    reading = store.read(REQUESTS, columns=["request_id"])
    found = next(reading)["request_id"].to_pylist()
    store.compact(REQUESTS, date(2026, 11, 26))
    found += [name for part in reading for name in part["request_id"].to_pylist()]
    assert sorted(found) == ["a", "b", "c", "d"]


def test_files_of_other_releases_are_read_and_merged(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table("new"))
    old = table("old").drop_columns(["draw_stratum", "draw_probability"])
    pq.write_table(old, tmp_path / "requests/date=2026-11-25/old.parquet")
    assert names_in(store) == ["new", "old"]
    store.compact(REQUESTS, date(2026, 11, 26))
    [merged] = store.read(REQUESTS)
    assert merged.schema.equals(routing_records.SCHEMA)
    assert merged["draw_stratum"].to_pylist() == [None, None]


def test_a_damaged_file_is_named_and_costs_no_other(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table("a"))
    day = tmp_path / "requests/date=2026-11-25"
    [whole] = day.iterdir()
    (day / "torn.parquet").write_bytes(whole.read_bytes()[:-100])
    (day / "other.parquet").write_bytes(b"PAR1")
    broken: list[str] = []
    assert names_in(store, broken=broken.append) == ["a"]
    assert sorted(name.rpartition("/")[2] for name in broken) == ["other.parquet", "torn.parquet"]
    assert store.compact(REQUESTS, date(2026, 11, 26)) == 0


def test_a_full_disk_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table("a"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.append(REQUESTS, table("b"))
    monkeypatch.undo()
    assert len(files(tmp_path)) == 1
    assert names_in(store) == ["a"]


WRITER = """
import sys
from predictor.record_store import REQUESTS, RecordStore
from tests.predictor.test_record_store import table
store = RecordStore(sys.argv[1])
number = 0
while True:
    names = [f"{number + i:032}" for i in range(50)]
    store.append(REQUESTS, table(*names))
    number += 50
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_files(tmp_path: Path) -> None:
    said = 0
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(2 + round_):
            said = max(said, int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = RecordStore(str(tmp_path))
    broken: list[str] = []
    found = names_in(store, broken=broken.append)
    assert broken == []
    assert {f"{number:032}" for number in range(said)} <= set(found)


def test_what_a_killed_writer_left_is_swept_after_a_while(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table("a"))
    day = tmp_path / "requests/date=2026-11-25"
    old, fresh = day / ".old.parquet.1.partial", day / ".fresh.parquet.2.partial"
    for left in (old, fresh):
        left.write_bytes(b"PAR1")
    os.utime(old, (NOON - 10**8, NOON - 10**8))
    assert names_in(store) == ["a"]
    store.compact(REQUESTS, date(2026, 11, 26))
    assert (old.exists(), fresh.exists()) == (False, True)


def test_old_days_are_forgotten(store: RecordStore) -> None:
    for days in range(3):
        store.append(REQUESTS, table(str(days), at=NOON + days * DAY_S))
    assert store.forget_before(REQUESTS, date(2026, 11, 27)) == [
        date(2026, 11, 25),
        date(2026, 11, 26),
    ]
    assert names_in(store) == ["2"]


def test_what_is_no_record_is_kept_for_a_human(tmp_path: Path) -> None:
    RecordStore(str(tmp_path)).reject(REQUESTS, [b'{"format":9}', b"\xff\n"], NOON)
    [name] = files(tmp_path)
    assert name.startswith("rejected/date=2026-11-25/requests-")
    assert (tmp_path / name).read_bytes() == b'{"format":9}\n\xff \n'


def test_a_name_has_one_hash_whatever_stands_beside_it() -> None:
    alone = hashes_of(pa.chunked_array([["short"]]))
    beside = hashes_of(pa.chunked_array([["short", "x" * 40]]))
    assert alone[0] == beside[0]
    many = hashes_of(pa.chunked_array([[f"{number:032x}" for number in range(20_000)]]))
    assert len(np.unique(many)) == 20_000
    assert 0.48 < (many < np.uint64(2**63)).mean() < 0.52


def test_seen_remembers_over_many_batches() -> None:
    """Each batch repeats thirty names of the one before."""
    seen = Seen()
    total = 0
    for start in range(0, 3_010, 70):
        names = pa.chunked_array([[str(number) for number in range(start, start + 100)]])
        total += int(seen.first(names).sum())
    assert total == 2_940 + 100
