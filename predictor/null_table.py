"""The noise null: one scale, asked several times about pictures that hardly differ.

How often "right in at least one of five runs" happens when nothing but luck differs between the
runs is what an oracle over five scales must be compared with. Run 0 is the picture as it is, the
others are the picture shifted by a pixel or two. One row per sample × run on disk (Parquet, the
metadata of an outcomes table and the scale), one row per sample in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from predictor.errors import OutcomesError
from predictor.records import OutcomeSource, Split
from predictor.whole_file import write_parquet

SCHEMA = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("run", pa.int32(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("correct", pa.float64()),
    ]
)
_SCALE = "m3.null_scale"


@dataclass(frozen=True, slots=True)
class NullOutcome:
    """What one run made of one question.

    Args:
        run: 0 for the picture as it is, 1, 2, … for shifted ones.
        correct: 0 to 1 by the row's metric; None if the run failed or the truth is unknown.
    """

    sample: str
    image: str
    group: str
    split: Split
    run: int
    answer: str
    correct: float | None


@dataclass(frozen=True, slots=True, eq=False)
class NullTable:
    """N samples × R runs at one scale; samples without a value in some run are left out.

    Args:
        sample, image, group, split: N strings each.
        correct: N×R shares in [0, 1].
        incomplete: samples left out.
    """

    source: OutcomeSource
    scale: int
    sample: NDArray[np.object_]
    image: NDArray[np.object_]
    group: NDArray[np.object_]
    split: NDArray[np.object_]
    correct: NDArray[np.float64]
    incomplete: int = 0

    def __len__(self) -> int:
        return len(self.sample)


def null_table_beside(outcomes: Path) -> Path:
    """Where the noise null of an outcomes file is kept."""
    return outcomes.with_suffix(".null.parquet")


def write_null_table(
    path: Path, outcomes: Iterable[NullOutcome], source: OutcomeSource, scale: int
) -> None:
    """Write rows as a table; the file appears complete or not at all."""
    rows = [asdict(outcome) for outcome in outcomes]
    write_parquet(path, pa.Table.from_pylist(rows, schema=_schema(source, scale)))


def merge_null_tables(parts: Sequence[Path], path: Path, source: OutcomeSource, scale: int) -> None:
    """Write the rows of several tables, all of this source and scale, as one table."""
    empty = _schema(source, scale).empty_table()
    write_parquet(path, pa.concat_tables([empty, *(pq.read_table(part) for part in parts)]))


def _schema(source: OutcomeSource, scale: int) -> pa.Schema:
    return SCHEMA.with_metadata(source.to_metadata() | {_SCALE: str(scale)})


def read_null_table(path: Path) -> NullTable:
    """Read and check what `write_null_table` wrote; samples in the order of their names.

    Raises:
        OutcomesError: not such a table, a sample × run given twice, a run without any row.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise OutcomesError(f"{path} cannot be read as Parquet.") from error
    source = OutcomeSource.from_metadata(table.schema.metadata, path)
    scale = table.schema.metadata.get(_SCALE.encode(), b"").decode()
    if not scale.isdecimal() or int(scale) not in source.ladder:
        raise OutcomesError(f"{path} is not a noise null; write it with `label --null-scale`.")
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    if missing:
        raise OutcomesError(f"{path} lacks the columns {', '.join(missing)}.")
    return _pivot(table.select(SCHEMA.names).cast(SCHEMA), source, int(scale), path)


def _pivot(table: pa.Table, source: OutcomeSource, scale: int, path: Path) -> NullTable:
    run = table["run"].to_numpy()
    runs = int(run.max()) + 1 if len(run) else 0
    if len(run) and (run.min() < 0 or len(np.unique(run)) != runs):
        raise OutcomesError(f"{path} lacks runs: it holds {np.unique(run).tolist()}.")
    names, first, row = np.unique(
        np.asarray(table["sample"].to_pylist(), dtype=object),
        return_index=True,
        return_inverse=True,
    )
    counts = np.zeros((len(names), runs), dtype=np.int64)
    np.add.at(counts, (row, run), 1)
    if (counts > 1).any():
        twice = names[np.argmax(counts.max(axis=1))]
        raise OutcomesError(f"{path}: sample {twice!r} has a run twice.")
    correct = np.full((len(names), runs), np.nan)
    correct[row, run] = table["correct"].to_numpy(zero_copy_only=False)
    complete = ~np.isnan(correct).any(axis=1)
    texts = {
        name: np.asarray(table[name].to_pylist(), dtype=object)[first][complete]
        for name in ("image", "group", "split")
    }
    return NullTable(
        source=source,
        scale=scale,
        sample=names[complete],
        correct=correct[complete],
        incomplete=int((~complete).sum()),
        **texts,
    )
