"""Labels → tables for the quality view: regret as it was known over time, and the newest labels.

Only labels of the uniform stratum count, because only they are drawn whatever was decided, so that
their means are the traffic's. Regret is added up by the same ledger as `m3_regret`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from predictor import label_records
from predictor.label_records import UNIFORM
from predictor.regret import COLUMNS, NONE, RegretLedger, Served

KEPT = 100_000  # labels that are kept one by one
# Seconds between two estimates that are kept, of labels that are at most so many seconds old.
STEPS_S = ((3 * 3600.0, 60), (3 * 86_400.0, 900), (float("inf"), 3600))
_MORE = ("served", "reason", "image", "p_success", "tokens_per_scale")
_WANTED = tuple(dict.fromkeys((*COLUMNS, *_MORE)))

# What an estimate of `predictor.regret.Estimate` was at a time.
_ESTIMATES = pa.schema(
    [
        pa.field("t", pa.timestamp("us", "UTC")),
        pa.field("served", pa.string()),
        pa.field("predictor", pa.string()),
        pa.field("regret", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("bound", pa.float64()),
        pa.field("labels", pa.int64()),
    ]
)


class Labels:
    """Labels in a database: `labels`, the newest of them, and `estimates`, regret by predictor.

    Args:
        database: where the tables are made.
        clock: Unix time, seconds.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._ledger = RegretLedger(of_thresholds=False)
        self._rows = 0
        self._write("labels", _kept(_table([])), create=True)
        self._write("estimates", _ESTIMATES.empty_table(), create=True)

    def add(self, labels: pa.Table) -> None:
        """Takes in labels as `read` gives them."""
        uniform = labels.filter(pc.equal(labels["stratum"], UNIFORM)).sort_by("at")
        if not len(uniform):
            return
        self._write("estimates", self._estimated(uniform))
        self._write("labels", _kept(uniform))
        self._rows += len(uniform)
        if self._rows > 2 * KEPT:
            newest = f"SELECT * FROM labels ORDER BY t DESC LIMIT {KEPT}"
            self._execute(f"CREATE OR REPLACE TABLE labels AS {newest}")
            self._rows = KEPT

    def _estimated(self, labels: pa.Table) -> pa.Table:
        """What the ledger says after each step of time that has labels."""
        at_s = pc.cast(labels["at"], pa.int64()).to_numpy() / 1e6
        age_s = self._clock() - at_s
        step_s = np.select([age_s <= oldest for oldest, _ in STEPS_S], [s for _, s in STEPS_S])
        begins = at_s // step_s * step_s
        ends = [*(np.flatnonzero(np.diff(begins)) + 1).tolist(), len(labels)]
        rows: list[dict[str, Any]] = []
        begin = 0
        for end in ends:
            part = labels.slice(begin, end - begin)
            self._ledger.add(part)
            columns = (part[name].to_pylist() for name in ("predictor", "tightened_to", "served"))
            latest = {version: (to, model) for version, to, model in zip(*columns, strict=True)}
            estimates = self._ledger.estimates()
            for version, (to, model) in latest.items():
                known = estimates.get(Served(version or NONE, to))
                if known is not None:
                    row = {name: getattr(known, name) for name in _ESTIMATES.names[3:]}
                    row |= {"t": part["at"][-1].as_py(), "served": model, "predictor": version}
                    rows.append(row)
            begin = end
        return pa.Table.from_pylist(rows, schema=_ESTIMATES)

    def _write(self, name: str, rows: pa.Table, *, create: bool = False) -> None:
        cursor = self._database.cursor()
        cursor.register("rows", rows)
        head = f"CREATE TABLE {name} AS" if create else f"INSERT INTO {name}"
        cursor.execute(f"{head} SELECT * FROM rows")
        cursor.close()

    def _execute(self, sql: str) -> None:
        cursor = self._database.cursor()
        cursor.execute(sql)
        cursor.close()


def read(file: BinaryIO) -> pa.Table:
    """What is needed of a file of labels; features, most of it, are never read."""
    table = pq.ParquetFile(file).read(columns=list(_WANTED))
    return label_records.upgraded(table).select(_WANTED)


def _kept(labels: pa.Table) -> pa.Table:
    rest = labels.drop_columns(["stratum"])
    return rest.rename_columns(["t" if name == "at" else name for name in rest.column_names])


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([label_records.SCHEMA.field(name) for name in _WANTED])
    return pa.Table.from_pylist(rows, schema=schema)
