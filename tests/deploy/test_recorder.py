"""The recorder between a real Redis and real files: killed, doubled, starved, no record short."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from deploy.recorder import Lane, Recorder
from predictor import record_files
from predictor.record_store import LABELS, REQUESTS, RecordStore
from predictor.regret import Served
from predictor.routing_records import encode
from router.record_stream import RecordStream
from router.tightening import Board, Publisher
from tests.conftest import RedisServer, start_redis
from tests.predictor.test_record_store import NOON, files, names_in
from tests.predictor.test_retrain import label
from tests.predictor.test_routing_records import record


def stream_of(server: RedisServer, longest: int = 100_000) -> RecordStream:
    return RecordStream(server.url, "requests", longest=longest)


def recorder_of(server: RedisServer, folder: Path, name: str = "one", **options: int) -> Recorder:
    settings = {"batch": 100, "abandoned_ms": 0} | options
    lane = Lane(REQUESTS, stream_of(server))
    return Recorder([lane], RecordStore(str(folder)), name=name, clock=lambda: NOON, **settings)


def names(count: int, start: int = 0) -> list[str]:
    return [f"{number:032x}" for number in range(start, start + count)]


def put(server: RedisServer, wanted: list[str]) -> None:
    assert stream_of(server).append([encode(record(name, NOON)) for name in wanted]) == len(wanted)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records"


def test_records_come_off_the_stream_when_they_are_in_files(
    redis_server: RedisServer, records: Path
) -> None:
    put(redis_server, names(250))
    recorder = recorder_of(redis_server, records)
    assert recorder.write()  # and there is more
    assert stream_of(redis_server).length() == 150
    recorder.write_all()
    assert stream_of(redis_server).length() == 0
    assert names_in(RecordStore(str(records))) == names(250)
    assert (recorder.stats.written, recorder.stats.files) == (250, 3)
    assert len(files(records)) == 3


def test_a_full_disk_keeps_them_on_the_stream(
    redis_server: RedisServer, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    put(redis_server, names(10))
    recorder = recorder_of(redis_server, records)
    with monkeypatch.context() as disk:
        disk.setattr(record_files.os, "fsync", full)
        assert not recorder.write()
        assert not recorder.write()
    assert (recorder.stats.failing, recorder.stats.errors) == (True, 2)
    assert files(records) == []
    assert stream_of(redis_server).length() == 10
    recorder.write_all()
    assert not recorder.stats.failing
    assert names_in(RecordStore(str(records))) == names(10)


def test_two_recorders_at_once_write_every_record_once(
    redis_server: RedisServer, records: Path
) -> None:
    put(redis_server, names(500))
    one = recorder_of(redis_server, records, "one", abandoned_ms=60_000)
    two = recorder_of(redis_server, records, "two", abandoned_ms=60_000)
    while one.write() | two.write():
        pass
    assert one.stats.written + two.stats.written == 500
    assert min(one.stats.written, two.stats.written) >= 200
    assert names_in(RecordStore(str(records))) == names(500)


def test_what_a_dead_recorder_held_another_one_writes(
    redis_server: RedisServer, records: Path
) -> None:
    put(redis_server, names(30))
    assert len(stream_of(redis_server).take("dead", 20, 0)) == 20
    alive = recorder_of(redis_server, records, "alive", abandoned_ms=60_000)
    alive.write_all()
    assert names_in(RecordStore(str(records))) == names(30)[20:]
    alive = recorder_of(redis_server, records, "alive", abandoned_ms=0)
    alive.write_all()
    assert names_in(RecordStore(str(records))) == names(30)


def test_a_recorder_takes_up_again_what_it_held(redis_server: RedisServer, records: Path) -> None:
    put(redis_server, names(30))
    assert len(stream_of(redis_server).take("one", 20, 0)) == 20
    recorder = recorder_of(redis_server, records, "one")
    recorder.write_all()
    assert names_in(RecordStore(str(records))) == names(30)
    assert recorder.stats.written == 30


def test_killed_after_the_file_before_the_stream_it_writes_twice_and_is_read_once(
    redis_server: RedisServer, records: Path
) -> None:
    put(redis_server, names(30))
    stream, store = stream_of(redis_server), RecordStore(str(records))
    entries = stream.take("killed", 30, 0)
    store.append(REQUESTS, REQUESTS.decode([entry.data for entry in entries])[0])
    recorder_of(redis_server, records).write_all()
    assert len(files(records)) == 2
    assert names_in(store) == names(30)


def test_redis_that_begins_anew_gets_its_group_again(tmp_path: Path, records: Path) -> None:
    server = start_redis(tmp_path)
    recorder = recorder_of(server, records)
    put(server, names(5))
    recorder.write_all()
    server.kill()
    assert not recorder.write()
    assert recorder.stats.failing
    server = start_redis(tmp_path, server.port)
    try:
        put(server, names(5, start=5))
        recorder.write_all()
    finally:
        server.kill()
    assert names_in(RecordStore(str(records))) == names(10)


def test_what_is_no_record_is_put_aside(redis_server: RedisServer, records: Path) -> None:
    put(redis_server, names(2))
    stream_of(redis_server).append([b"garbage", b'{"format":99}'])
    redis_server.client().xadd("m3:records:requests", {"other": "field"})
    recorder = recorder_of(redis_server, records)
    recorder.write_all()
    assert (recorder.stats.written, recorder.stats.rejected) == (2, 3)
    assert stream_of(redis_server).length() == 0
    [rejected] = (records / "rejected/date=2026-11-25").iterdir()
    assert rejected.read_bytes() == b'garbage\n{"format":99}\n\n'


def test_a_stream_is_bounded_without_losing_what_is_in_it(redis_server: RedisServer) -> None:
    stream = stream_of(redis_server, longest=3)
    assert stream.append([b"1", b"2"]) == 2
    assert stream.append([b"3", b"4"]) == 1
    assert stream.append([b"5"]) == 0
    assert [entry.data for entry in stream.take("one", 10, 0)] == [b"1", b"2", b"3"]


def test_who_leaves_is_forgotten_unless_he_holds_something(redis_server: RedisServer) -> None:
    put(redis_server, names(1))
    stream = stream_of(redis_server)
    stream.take("holds", 1, 0)
    stream.take("idle", 1, 60_000)
    for consumer in ("holds", "idle"):
        stream.leave(consumer)
    groups = redis_server.client().xinfo_consumers("m3:records:requests", "recorder")
    assert [each["name"] for each in groups] == [b"holds"]


def test_days_that_are_over_are_put_together_and_forgotten(
    redis_server: RedisServer, records: Path
) -> None:
    store = RecordStore(str(records))
    day_s = 86_400
    for days_ago in (3, 3, 1, 1, 0, 0):
        encoded = [encode(record(f"{days_ago}", NOON - days_ago * day_s))]
        store.append(REQUESTS, REQUESTS.decode(encoded)[0])
    recorder = recorder_of(redis_server, records, retention_days=2)
    recorder.keep_house()
    days = [f"{datetime.fromtimestamp(NOON - d * day_s, UTC):%Y-%m-%d}" for d in (1, 0)]
    assert [str(day) for day in store.days(REQUESTS)] == days
    assert len(files(records)) == 3  # one of yesterday, two of today


def test_labels_that_are_written_say_what_routing_costs(
    redis_server: RedisServer, records: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of an earlier recorder too, each once, and a broken bound is told once."""
    stream = RecordStream(redis_server.url, "labels", longest=1000)

    board = Board(redis_server.url)

    def recorder_of_labels(name: str) -> Recorder:
        store, lanes = RecordStore(str(records)), [Lane(LABELS, stream)]
        told = Publisher(board)
        return Recorder(lanes, store, name=name, batch=100, publisher=told, clock=lambda: NOON)

    # The price of 0.05 chooses 9 tokens, which lose, the other one 36, which do not.
    prices = {"certified_bounds": [0.01, 0.05], "certified_prices": [0.01, 2.0]}
    known = prices | {"target": "agreement", "p_success": [0.1, 0.9, 0.95, 0.95, 0.95]}
    lost = known | {"scale": 9, "agrees": [0.0, 0.0, 1.0, 1.0, 1.0], "predictor": "bad"}
    kept = {"scale": 36, "agrees": [0.0, 0.0, 1.0, 1.0, 1.0], "predictor": "good"}
    near = lost | {"stratum": "threshold"}  # says nothing about the traffic
    labels = [label(row, **(lost, kept, near)[row % 3]) for row in range(180)]
    stream.append(labels)
    first = recorder_of_labels("first")
    first.write_all()
    regret = first.stats.regret
    assert [(s.predictor, e.regret, e.labels) for s, e in sorted(regret.items())] == [
        *(("bad", 1.0, 60), ("good", 0.0, 60)),
    ]
    bad, good = regret[Served("bad")], regret[Served("good")]
    assert bad.low > bad.bound == pytest.approx(0.05)
    assert good.low == 0.0 < good.high < 0.3
    stream.append(labels[:3])
    first.write_all()
    assert first.stats.regret[Served("bad")].labels == 60
    told = [r.message for r in caplog.records if "breaks its bound" in r.message]
    assert len(told) == 1
    assert "predictor bad" in told[0]
    lows = {bound: e.low for bound, e in first.stats.thresholds["bad"].items()}
    assert board.read("bad") == {0.05: lows[0.05]}  # of the other one nothing can be said
    assert lows[0.05] > 0.5
    redis_server.client().delete("m3:lows:bad")  # a Redis that keeps nothing
    second = recorder_of_labels("second")
    stopping = threading.Event()
    stopping.set()
    second.run(1.0, stopping)
    assert second.stats.regret == first.stats.regret
    assert board.read("bad") == {0.05: lows[0.05]}


RECORDER = """
import sys, time
from pathlib import Path
from deploy.recorder import Lane, Recorder
from predictor.record_store import REQUESTS, RecordStore
from router.record_stream import RecordStream
lane = Lane(REQUESTS, RecordStream(sys.argv[1], "requests", longest=100_000))
recorder = Recorder([lane], RecordStore(sys.argv[2]), name=sys.argv[3], batch=20, abandoned_ms=0)
print("started", flush=True)
while True:
    if not recorder.write():
        print(recorder.stats.written, flush=True)
        time.sleep(0.01)
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_kill_9_at_random_moments_loses_nothing(
    redis_server: RedisServer, records: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Real processes, two at a time, each killed in the middle of its work."""
    moments = random.Random(7)
    wanted = names(1_500)
    put(redis_server, wanted)
    for round_ in range(4):
        for name in ("a", "b"):
            command = [sys.executable, "-c", RECORDER, redis_server.url, str(records), name]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in started[-2:]:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
        written = stream_of(redis_server).length() - moments.randrange(60, 200)
        while round_ < 3 and stream_of(redis_server).length() > written:
            pass
        for process in started[-2:]:
            process.send_signal(signal.SIGKILL)
            process.wait()
    recorder_of(redis_server, records, "last").write_all()
    assert stream_of(redis_server).length() == 0
    broken: list[str] = []
    assert names_in(RecordStore(str(records)), broken=broken.append) == wanted
    assert broken == []


def test_a_redis_that_is_full_says_so(redis_server: RedisServer) -> None:
    redis_server.client().config_set("maxmemory", 1)
    with pytest.raises(redis.RedisError):
        stream_of(redis_server).append([b"record"])
