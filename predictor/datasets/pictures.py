"""The pictures that a data set's rows name: where they are, whether they open, which are equal."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from m3_backend.errors import InvalidImageError
from m3_backend.messages import digest_of
from m3_backend.preprocess import decode_image
from predictor.datasets.rows import Problem, Row

_EXTENSIONS = ("", ".jpg", ".jpeg", ".png", ".webp")


def find_picture(folder: Path, names: Iterable[str]) -> str | None:
    """The first of the names that is a file in `folder`, as it is or with a picture's extension.

    Raises OSError for what no file can be called, such as a picture itself in base64.
    """
    candidates = (name + extension for name in names for extension in _EXTENSIONS)
    return next((name for name in candidates if (folder / name).is_file()), None)


@dataclass(frozen=True, slots=True)
class PictureCheck:
    """What looking at every picture gave.

    Args:
        problems: one per row whose picture is missing or does not decode.
        warnings: sentences about pictures of equal content under names in different splits.
    """

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def check_pictures(
    rows: Sequence[Row], progress: Callable[[int, int], None] = lambda done, total: None
) -> PictureCheck:
    """Read and decode every picture once.

    Args:
        progress: called with pictures done and all pictures.
    """
    first = {row.image: row for row in reversed(rows)}
    reasons: dict[str, str] = {}
    twins: dict[str, list[Row]] = defaultdict(list)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the GIL
        for row, (digest, reason) in zip(
            first.values(), pool.map(_look, first.values()), strict=True
        ):
            if reason:
                reasons[row.image] = reason
            else:
                twins[digest].append(row)
            progress(len(reasons) + sum(map(len, twins.values())), len(first))
    problems = (Problem(row.place, reasons[row.image]) for row in rows if row.image in reasons)
    return PictureCheck(tuple(problems), tuple(_torn(twins)))


def _look(row: Row) -> tuple[str, str]:
    """A picture's digest, and what is wrong with it or nothing."""
    name = row.picture if isinstance(row.picture, Path) else row.image
    try:
        data = row.read_picture()
    except OSError:
        tried = ", ".join(_EXTENSIONS[1:])
        return "", f"the picture {name} is not there (nor with {tried}) or cannot be read."
    try:
        decode_image(data)
    except InvalidImageError as error:
        return "", f"{name}: {error.message}"
    return digest_of(data), ""


def _torn(twins: Mapping[str, Sequence[Row]]) -> Iterable[str]:
    for rows in twins.values():
        if len({row.split for row in rows}) > 1:
            names = ", ".join(f"{row.image} ({row.split})" for row in rows[:4])
            yield f"one picture under several names is in several splits: {names}."
