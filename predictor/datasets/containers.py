"""A file → its records, numbered: CSV, one JSON document, or one JSON object per line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.datasets.formats import FORMATS, Record, RecordError
from predictor.errors import OutcomesError

_MEMBERS = ("data", "questions", "annotations")  # under which a JSON object keeps its records


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Args:
        unit: what the numbers count, "line" or "record".
        records: with their numbers; a broken one has its problem instead.
        header: of a JSON document, the members beside the one that holds the records.
        member: its name; empty without one.
    """

    unit: str
    records: tuple[tuple[int, Record | RecordError], ...]
    header: Record
    member: str = ""


def read_text(path: Path) -> str:
    """Raises OutcomesError if the file cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OutcomesError(f"{path} cannot be read as UTF-8 text.") from error


def looks_like_csv(text: str) -> bool:
    """Whether it begins with anything but a JSON object or list."""
    return text.lstrip()[:1] not in ("{", "[", "")


def read_json(text: str, path: Path) -> Content:
    """One document with a list of objects, or an object per line; empty lines do not count.

    Raises:
        OutcomesError: not a single object could be read.
    """
    try:
        document = json.loads(text)
    except ValueError:
        return _lines(text, path)
    if isinstance(document, list):
        return Content("record", tuple(_objects(enumerate(document, start=1))), {})
    if isinstance(document, dict):
        for member in _MEMBERS:
            if isinstance(records := document.get(member), list):
                header = {name: value for name, value in document.items() if name != member}
                numbered = tuple(_objects(enumerate(records, start=1)))
                return Content("record", numbered, header, member)
    return _lines(text, path)  # a single line


def _lines(text: str, path: Path) -> Content:
    records: list[tuple[int, Record | RecordError]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records += _objects([(number, json.loads(line))])
        except ValueError:
            records.append((number, RecordError("not JSON.")))
    if records and all(isinstance(record, RecordError) for _, record in records):
        raise OutcomesError(f"{path} is neither one JSON document nor one JSON object per line.")
    return Content("line", tuple(records), {})


def _objects(numbered: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record | RecordError]]:
    for number, record in numbered:
        is_object = isinstance(record, dict)
        yield number, record if is_object else RecordError("not a JSON object.")


def read_csv(text: str, path: Path) -> Content:
    """Rows below a first line that names the columns; tabs separate if that line has any.

    Raises:
        OutcomesError: the columns `image` and `question` are missing, or quotes do not close.
    """
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    # Not splitlines: it would also cut at form feeds and Unicode's separators within a cell.
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    reader.fieldnames = columns = [column.strip() for column in reader.fieldnames or ()]
    missing = {"image", "question"}.difference(columns)
    if missing:
        raise OutcomesError(
            f"{path} has no column {' and '.join(sorted(missing))}; its first line must name the "
            f"columns. Expected: {FORMATS['csv'].shape}."
        )
    records: list[tuple[int, Record | RecordError]] = []
    ragged = RecordError(f"not as many cells as the first line has ({len(columns)}).")
    try:
        for record in reader:
            whole = None not in record and None not in record.values()
            records.append((reader.line_num, record if whole else ragged))
    except csv.Error as error:
        raise OutcomesError(f"{path} is not CSV after line {reader.line_num}: {error}.") from error
    return Content("line", tuple(records), {})
