from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from predictor.whole_file import whole_file, write_parquet


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.parquet"
    write_parquet(path, pa.table({"a": [1, 2]}))
    assert pq.read_table(path).to_pydict() == {"a": [1, 2]}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_was_there_outlives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("before")
    with pytest.raises(OSError, match="disk full"), whole_file(path) as partial:
        partial.write_text("half of")
        raise OSError("disk full")
    assert path.read_text() == "before"
