"""A file of questions → rows, and a problem for every record that is broken.

file → records (CSV, JSON, JSON lines) → entries (`formats`) → rows: picture, split, metric, name
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from predictor.datasets.containers import (
    Content,
    looks_like_csv,
    read_csv,
    read_json,
    read_text,
)
from predictor.datasets.formats import FORMATS, Entry, Record, RecordError, Source
from predictor.datasets.pictures import find_picture
from predictor.datasets.rows import Problem, Row
from predictor.errors import OutcomesError
from predictor.metrics import METRICS, VQA_LEAST_ANSWERS, Metric
from predictor.records import SPLITS, Split, assign_split

_LOOKED_AT = 100  # records, to tell a format


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a file holds.

    Args:
        format: its name among `FORMATS`.
        rows: those of one picture next to each other.
        problems: one per record that gave no row, in the file's order.
    """

    format: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]


def read_dataset(
    path: Path,
    *,
    format: str | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    metric: Metric | None = None,
    seed: int = 0,
) -> Dataset:
    """Read any of the known formats.

    Args:
        format: one of `FORMATS`; None tells it from the content.
        images: the folder that pictures are named in; None is the file's own.
        annotations: the second file of VQAv2.
        metric: for rows that do not name their own; None takes what is customary for the format.
        seed: of the splits of pictures whose rows name none.

    Raises:
        OutcomesError: the file as a whole cannot be read, or is none of the formats.
    """
    text = read_text(path)
    as_csv = format == "csv" or (format is None and looks_like_csv(text))
    content = read_csv(text, path) if as_csv else read_json(text, path)
    name = "csv" if as_csv else format or _detected(content, path)
    if annotations is not None and name != "vqav2":
        raise OutcomesError(f"{path} is read as {name!r}; only 'vqav2' has a file of annotations.")
    answers = None if annotations is None else _by_question(annotations)
    kind, source = FORMATS[name], Source(path, content.header, answers)
    rows = _Rows(images or path.parent, metric or kind.metric, seed)
    problems = []
    for number, record in content.records:
        place = f"{path}, {content.unit} {number}"
        try:
            if isinstance(record, RecordError):
                raise record
            rows.add(kind.read(record, source), place, number)
        except RecordError as error:
            problems.append(Problem(place, str(error)))
    return Dataset(name, rows.sorted(), tuple(problems))


def read_jsonl(path: Path, *, seed: int = 0) -> list[Row]:
    """Rows of the project's own format, pictures of equal name next to each other.

        {"image": "a.jpg", "question": "What …?", "answers": ["red"], "group": "colour"}

    `image` is relative to the file's folder. `answer` may stand for `answers` of one, or both be
    left out; `sample`, `group`, `split` and `metric` are optional. Without `split`, one follows
    from the picture's name and `seed`.

    Raises:
        OutcomesError: a line that is not such an object, by its number.
    """
    dataset = read_dataset(path, format="jsonl", seed=seed)
    if dataset.problems:
        raise OutcomesError(str(dataset.problems[0]))
    return list(dataset.rows)


class _Rows:
    """Rows as they come in, checked against those before them."""

    def __init__(self, folder: Path, metric: Metric, seed: int) -> None:
        self._folder, self._metric, self._seed = folder, metric, seed
        self._rows: list[Row] = []
        self._places: dict[str, str] = {}  # of samples
        self._splits: dict[str, tuple[Split, str]] = {}  # of pictures, and where that is said

    def add(self, entries: Iterable[Entry], place: str, number: int) -> None:
        """All entries of one record, or none.

        Raises:
            RecordError
        """
        fresh = []
        for position, entry in enumerate(entries):
            default = f"{number:07}" if position == 0 else f"{number:07}-{position}"
            fresh.append(self._row(entry, place, entry.sample or default))
        self._rows += fresh

    def sorted(self) -> tuple[Row, ...]:
        return tuple(sorted(self._rows, key=lambda row: row.image))

    def _row(self, entry: Entry, place: str, sample: str) -> Row:
        try:
            image = find_picture(self._folder, entry.images) or entry.images[0]
        except OSError as error:
            raise RecordError(
                f"no file can be called {entry.images[0][:40]!r}… ({error.strerror}); pictures are "
                "files in a folder."
            ) from error
        split, metric = self._split(entry, image), self._checked_metric(entry)
        taken = self._places.get(sample)
        if taken is not None:
            raise RecordError(f"sample {sample!r} is there already ({taken}).")
        known, where = self._splits.get(image, (split, place))
        if split != known:
            raise RecordError(
                f"{image} is in split {split!r} here and in {known!r} before ({where}); "
                "splits are made by picture."
            )
        self._places[sample] = place
        self._splits[image] = split, where
        picture = self._folder / image
        return Row(
            sample, image, picture, entry.question, entry.answers, entry.group, split, metric, place
        )

    def _split(self, entry: Entry, image: str) -> Split:
        if entry.split is None:
            return assign_split(image, self._seed)
        if entry.split not in SPLITS:
            raise RecordError(f"split {entry.split!r} is not one of {', '.join(SPLITS)}.")
        return entry.split

    def _checked_metric(self, entry: Entry) -> Metric:
        metric = entry.metric or self._metric
        if metric not in METRICS:
            raise RecordError(f"metric {metric!r} is not one of {', '.join(METRICS)}.")
        if metric == "vqa" and 0 < len(entry.answers) < VQA_LEAST_ANSWERS:
            raise RecordError(
                f"metric 'vqa' counts who agrees among several people and needs "
                f"{VQA_LEAST_ANSWERS} answers or more, here are {len(entry.answers)}; "
                "another metric such as 'exact' takes one."
            )
        return metric


def _detected(content: Content, path: Path) -> str:
    """The format of a JSON file, by the first record that fits any."""
    records = [each for _, each in content.records if not isinstance(each, RecordError)]
    for record in records[:_LOOKED_AT]:
        for name, kind in FORMATS.items():
            if kind.fits(record, content.member):
                return name
    if content.unit == "line":
        return "jsonl"
    members = ", ".join(map(repr, records[0])) if records else "nothing"
    known = "\n".join(f"  {name:20} {kind.shape}" for name, kind in FORMATS.items())
    raise OutcomesError(
        f"{path}: records with {members} fit no known format; name it if it is one of these:\n"
        f"{known}"
    )


def _by_question(path: Path) -> Mapping[str, Record]:
    """VQAv2's annotations by question id."""
    content = read_json(read_text(path), path)
    if content.member != "annotations":
        raise OutcomesError(f'{path} is no file of annotations, {{"annotations": [...]}}.')
    annotations = [cast(Record, each) for _, each in content.records if isinstance(each, dict)]
    return {str(each.get("question_id")): each for each in annotations}
