"""Files that are there completely or not at all, whatever stops the writing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what then appears at `path`, in a folder that is made if need be.

    If writing fails, what was at `path` before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table, compressed, as a whole."""
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")
