"""Rows on their way to files: many encoded ones → a table, and which of them are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from predictor.errors import RecordsError

Row = Mapping[str, Any]


def tabulated(
    encoded: Sequence[bytes],
    row_of: Callable[[bytes], Row],
    table_of: Callable[[Sequence[Row]], pa.Table],
) -> tuple[pa.Table, list[int]]:
    """A table of all that can be read, and the positions of what cannot.

    Args:
        row_of: raises RecordsError for what is no such row.
        table_of: raises RecordsError if one of the rows does not fit.
    """
    rows, broken = [], []
    for at, data in enumerate(encoded):
        try:
            rows.append((at, row_of(data)))
        except RecordsError:
            broken.append(at)
    try:
        return table_of([row for _, row in rows]), broken
    except RecordsError:  # some of them: one by one, to keep the others
        tables = [table_of([])]
        for at, row in rows:
            try:
                tables.append(table_of([row]))
            except RecordsError:
                broken.append(at)
        return pa.concat_tables(tables), sorted(broken)


def table_of(schema: pa.Schema, rows: Sequence[Row], what: str) -> pa.Table:
    """Rows with the columns of a schema.

    Args:
        what: one of them is, for the error.

    Raises:
        RecordsError: one of them does not fit, or lacks what must be there.
    """
    try:
        table = pa.Table.from_pylist(list(rows), schema=schema)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise RecordsError(f"Not the columns of {what}.") from error
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise RecordsError(f"{what[:1].upper()}{what[1:]} without {field.name}.")
    return table


def with_columns_of(schema: pa.Schema, table: pa.Table) -> pa.Table:
    """A table of this or another release with these columns, in order.

    Columns that came later are empty; columns of a later release are left out.
    """
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
