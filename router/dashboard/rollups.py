"""Records → sums by time, so that a panel's query reads thousands of rows and not ten million.

Every answer's record is counted once, in three resolutions: ten seconds for the last hours, five
minutes for the last days, hours for ever. Sums of tokens are exact; durations are counted in bins
of an eighth of an octave, so quantiles are within 4.5%.

Labels (`router.dashboard.labels`) stand beside them in the same database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO, get_args

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from m3_backend.messages import CacheLevel
from predictor.record_files import RecordFiles
from predictor.record_store import LABELS, REQUESTS
from router.dashboard import labels
from router.dashboard.new_files import Days, NewFiles, every_day

ANSWERS = "/v1/chat/completions"
BINS_PER_OCTAVE = 8
ANSWER_TIMES = ("total", "ttft")  # counted by scale
CACHES: tuple[CacheLevel, ...] = get_args(CacheLevel)
ROUTER_TIMES = ("routing", "wait", "parse", "images", "features", "predict", "decide")
REPLICA_TIMES = ("queue", "fetch", "encode", "prefill", "decode")  # of recent requests only
DURATIONS = (*ANSWER_TIMES, *ROUTER_TIMES, *REPLICA_TIMES)
COLUMNS = (
    *("request_id", "at", "endpoint", "key", "served", "predictor", "status", "code"),
    *("prompt_tokens", "image_tokens", "finest_tokens", "completion_tokens"),
    *("pressure", "loosened_from", "tightened_to", "retries"),
    *(f"{name}_ms" for name in DURATIONS),
    *("model", "stream", "priority", "finish_reason", "replica", "max_regret", "cost_ms"),
)
OF_IMAGES = (
    *("scale", "reason", "tokens", "p_sufficient", "cache", "width", "height"),
    *("tokens_per_scale.list.element", "p_success.list.element"),
)
NESTED = tuple(f"images.list.element.{name}" for name in OF_IMAGES)
RECENT = 5_000  # requests that are kept one by one
COMPACT_FROM = 20_000  # rows of a table, and twice what it was after the last time


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution. Rows older than `keep_s` seconds are left to coarser ones."""

    name: str
    step_s: int
    keep_s: float


LEVELS = (
    Level("tens", 10, 3 * 3600.0),
    Level("fives", 300, 3 * 86_400.0),
    Level("hours", 3600, float("inf")),
)

# Of one image, what is known of its scale: the place of the choice on the ladder.
_FRESH = """
CREATE OR REPLACE TEMP TABLE fresh AS
SELECT *, "at" AS t,
       list_transform(images, lambda i: list_position(i.tokens_per_scale, i.tokens)) AS places,
       list_max(list_transform(images, lambda i: i.scale)) AS scale
FROM batch WHERE endpoint = '{answers}'
"""
_SUMS = """
SELECT time_bucket(INTERVAL {step} SECOND, t) AS t, key, served, predictor, scale, code,
       count(*) AS requests,
       sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(image_tokens)::BIGINT AS image_tokens,
       sum(finest_tokens) FILTER (image_tokens IS NOT NULL)::BIGINT AS finest_tokens,
       sum(completion_tokens)::BIGINT AS completion_tokens,
       sum(encode_ms)::DOUBLE AS encode_ms, sum(prefill_ms)::DOUBLE AS prefill_ms,
       sum(decode_ms)::DOUBLE AS decode_ms,
       count(loosened_from) AS loosened, sum(retries)::BIGINT AS retries,
       max(pressure) AS pressure,
       {caches}
FROM {source} GROUP BY ALL
"""
_LADDERS = """
SELECT time_bucket(INTERVAL {step} SECOND, t) AS t, key, served, predictor, place,
       count(*) AS images, sum(image.tokens_per_scale[place])::BIGINT AS tokens,
       sum(image.p_success[place])::DOUBLE AS p, count(image.p_success[place]) AS predicted,
       sum(image.p_success[chosen]) FILTER (place = chosen)::DOUBLE AS p_chosen,
       count(*) FILTER (place = chosen) AS chosen
FROM (
    SELECT t, key, served, predictor, image, chosen,
           unnest(range(1, len(image.tokens_per_scale) + 1)) AS place
    FROM (
        SELECT t, key, served, predictor, unnest(images) AS image, unnest(places) AS chosen
        FROM {source} WHERE code = 'ok' AND image_tokens IS NOT NULL
    )
) GROUP BY ALL
"""
_TIMES = """
SELECT time_bucket(INTERVAL {step} SECOND, t) AS t, key, served,
       CASE WHEN kind IN {by_scale} THEN scale END AS scale, kind,
       floor({bins} * log2(greatest(ms, 0.001)))::SMALLINT AS bin, count(*) AS n,
       sum(ms)::DOUBLE AS ms
FROM (
    SELECT t, key, served, scale, unnest([{pairs}], recursive := true)
    FROM {source} WHERE code = 'ok'
) WHERE ms IS NOT NULL GROUP BY ALL
"""
_RECENT = """
SELECT * EXCLUDE ("at", endpoint, places) FROM fresh
"""
_TABLES = {
    "sums": (_SUMS, "t, key, served, predictor, scale, code", {"pressure": "max"}),
    "ladders": (_LADDERS, "t, key, served, predictor, place", {}),
    "times": (_TIMES, "t, key, served, scale, kind, bin", {}),
}


class RollUps:
    """Sums over all records of a store, kept up to date by `refresh`.

    The newest requests are kept one by one, in the table `recent`.

    Args:
        root: of the records, as `predictor.record_store.RecordStore`.
        clock: Unix time, seconds.
        days: those (UTC) that are looked at.
    """

    def __init__(
        self, root: str, clock: Callable[[], float] = time.time, days: Days = every_day
    ) -> None:
        files, self._clock = RecordFiles(root), clock
        self._requests = NewFiles(files, REQUESTS, _columns, days, newest_first=True)
        self._labels = NewFiles(files, LABELS, labels.read, days, newest_first=False)
        self._database = duckdb.connect(":memory:")
        self._database.execute("SET TimeZone = 'UTC'")
        self._lock = threading.Lock()  # of whoever writes
        self._compacted: dict[str, int] = {}
        self.records = 0
        empty = pa.Table.from_pylist([], schema=_schema())
        self._take(empty, create=True)
        self._quality = labels.Labels(self._database, clock)

    def refresh(self) -> int:
        """Reads the files that are new, the newest days first; gives the number of new records."""
        with self._lock:
            before = self.records
            for table in self._requests.tables():
                self._take(table)
                self.records += len(table)
            for table in self._labels.tables():
                self._quality.add(table)
            self._keep_house()
            return self.records - before

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows by column; from any thread."""
        with closing(self._database.cursor()) as cursor:
            result = cursor.execute(sql, parameters or {})
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def table(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """The same by column, for many rows."""
        with closing(self._database.cursor()) as cursor:
            return cursor.sql(sql, params=parameters or {}).to_arrow_table()

    def _take(self, batch: pa.Table, *, create: bool = False) -> None:
        writer = self._database.cursor()
        writer.register("batch", batch)
        writer.execute(_FRESH.format(answers=ANSWERS))
        counted = (*ANSWER_TIMES, *ROUTER_TIMES)
        pairs = ", ".join(f"{{kind: '{name}', ms: {name}_ms}}" for name in counted)
        caches = ", ".join(
            f"sum(len(list_filter(images, lambda i: i.cache = '{level}')))::BIGINT AS {level}"
            for level in CACHES
        )
        writer.execute("BEGIN")
        for level in LEVELS:
            oldest = self._oldest(level)
            source = f"(SELECT * FROM fresh WHERE t >= to_timestamp({oldest}))"
            for table, (sql, _, _) in _TABLES.items():
                rows = sql.format(
                    source=source,
                    step=level.step_s,
                    bins=BINS_PER_OCTAVE,
                    by_scale=ANSWER_TIMES,
                    pairs=pairs,
                    caches=caches,
                )
                head = "CREATE TABLE {} AS" if create else "INSERT INTO {}"
                writer.execute(f"{head.format(f'{table}_{level.name}')} {rows}")
        if create:
            writer.execute(f"CREATE TABLE recent AS {_RECENT}")
        else:
            writer.execute(f"INSERT INTO recent {_RECENT} ORDER BY t DESC LIMIT {RECENT}")
        writer.execute("COMMIT")
        writer.close()

    def _oldest(self, level: Level) -> float:
        """Of what a level keeps, Unix time."""
        return max(0.0, self._clock() - level.keep_s)

    def _keep_house(self) -> None:
        """Adds up what belongs together and forgets what coarser levels are for."""
        writer = self._database.cursor()
        [(kept,)] = writer.execute("SELECT count(*) FROM recent").fetchall()
        if kept > 2 * RECENT:
            newest = f"SELECT * FROM recent ORDER BY t DESC LIMIT {RECENT}"
            writer.execute(f"CREATE OR REPLACE TABLE recent AS {newest}")
        for level in LEVELS:
            for table, (_, keys, largest) in _TABLES.items():
                name = f"{table}_{level.name}"
                [(rows,)] = writer.execute(f"SELECT count(*) FROM {name}").fetchall()
                if rows < max(COMPACT_FROM, 2 * self._compacted.get(name, 0)):
                    continue
                columns = [row[0] for row in writer.execute(f"DESCRIBE {name}").fetchall()]
                grouped = keys.split(", ")
                sums = ", ".join(
                    f"max({c}) AS {c}"
                    if c in largest
                    else f"sum({c})::{_type(writer, name, c)} AS {c}"
                    for c in columns
                    if c not in grouped
                )
                writer.execute(
                    f"CREATE OR REPLACE TABLE {name} AS SELECT {keys}, {sums} FROM {name} "
                    f"WHERE t >= to_timestamp({self._oldest(level)}) GROUP BY ALL ORDER BY t"
                )
                [(left,)] = writer.execute(f"SELECT count(*) FROM {name}").fetchall()
                self._compacted[name] = left
        writer.close()


def level_for(step_s: float) -> Level:
    """The coarsest resolution that is no coarser than a step."""
    return max((x for x in LEVELS if x.step_s <= step_s), key=lambda x: x.step_s, default=LEVELS[0])


def _type(writer: duckdb.DuckDBPyConnection, table: str, column: str) -> str:
    [found] = [row[1] for row in writer.execute(f"DESCRIBE {table}").fetchall() if row[0] == column]
    return str(found)


def _columns(file: BinaryIO) -> pa.Table:
    """What is needed of a file; features, most of it, are never read."""
    table = pq.ParquetFile(file).read(columns=[*COLUMNS, *NESTED])
    missing = [name for name in COLUMNS if name not in table.column_names]
    for name in missing:  # of an earlier format
        table = table.append_column(name, pa.nulls(len(table), REQUESTS.schema.field(name).type))
    return table


def _schema() -> pa.Schema:
    images = REQUESTS.schema.field("images").type.value_type
    wanted = [name.split(".")[0] for name in OF_IMAGES]
    kept = pa.struct([field for field in images if field.name in wanted])
    fields = [REQUESTS.schema.field(name) for name in COLUMNS]
    return pa.schema([*fields, pa.field("images", pa.list_(kept))])
