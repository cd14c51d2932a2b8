"""Offline: run a checkpoint at every scale over questions and write down what came out.

The work is cut into parts of a few pictures. A part's file bears a name that follows from all that
decides its content: a run that was stopped goes on where it was, and any number of processes may
work side by side without changing anything. Image features are computed in passing and kept beside
the outcomes, so that training needs neither model nor pictures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path

from m3_backend.costs import CostModel
from m3_backend.messages import digest_of
from m3_backend.threads import use_threads
from predictor.datasets import Row
from predictor.errors import OutcomesError
from predictor.image_table import read_image_table, table_beside, write_image_table
from predictor.labeller import Labeller, Setup, Vector
from predictor.null_table import merge_null_tables, null_table_beside, write_null_table
from predictor.records import merge_outcomes, read_errors, read_samples, write_outcomes
from predictor.shifts import OFFSETS

Progress = Callable[[int, int | None], None]

_PICTURES_PER_PART = 16


@dataclass(frozen=True, slots=True)
class NullPlan:
    """Which noise null to compute.

    Args:
        scale: at which all runs are made.
        runs: with different shifts; the first is the picture as it is.
        share: of the pictures, drawn by their names and `seed`.

    Raises:
        OutcomesError: fewer than two runs, more than there are shifts, or a share outside (0, 1].
    """

    scale: int
    runs: int = 5
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.runs <= len(OFFSETS):
            raise OutcomesError(f"A noise null takes 2 to {len(OFFSETS)} runs, not {self.runs}.")
        if not 0 < self.share <= 1:
            raise OutcomesError(f"The share of pictures is in (0, 1], not {self.share}.")

    def takes(self, image: str) -> bool:
        """Whether a picture is among the drawn ones."""
        hashed = hashlib.sha256(f"null:{self.seed}:{image}".encode()).digest()
        return int.from_bytes(hashed[:8], "big") < self.share * 2**64


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a run of `label` did.

    Args:
        answered: questions in this run, those of the noise null once per shift.
        failed: what went wrong, by sample, in this run and those it continued.
    """

    answered: int
    failed: dict[str, str]


def label(
    rows: Iterable[Row],
    setup: Setup,
    out: Path,
    *,
    null: NullPlan | None = None,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> Labelled:
    """Answer every row at every scale; write the outcomes to `out`, image features beside it.

    Rows that fail are recorded with their error at every scale. Where `out` is there already, a
    noise null can still be added to it.

    Args:
        rows: those about one picture must follow each other.
        null: also write this noise null beside `out`.
        jobs: processes; more than one take one thread each.
        progress: called with questions done (earlier runs' included) and, if `rows` has a length,
            all questions.

    Raises:
        OutcomesError: the files exist already, `out` is another checkpoint's, there are no rows, or
            a process died.
        CheckpointError: the checkpoint cannot be opened or has no tokenizer.
        InvalidScaleError: the null's scale is not on the checkpoint's ladder.
    """
    null_out = null_table_beside(out)
    only_null = out.exists()
    if only_null and (null is None or null_out.exists()):
        raise OutcomesError(f"{out} exists; remove it or choose another name.")
    if null is not None and null_out.exists():
        raise OutcomesError(f"{null_out} exists; remove it or choose another name.")
    labeller = Labeller(setup)
    if null is not None:
        labeller.source.ladder.require(null.scale)
    if only_null and read_samples(out)[0] != labeller.source:
        raise OutcomesError(f"{out} was answered by another checkpoint.")

    folder = out.with_name(out.name + ".parts")
    kinds = [*([] if only_null else [None]), *([] if null is None else [null])]
    total = _questions(rows, kinds) if isinstance(rows, Sequence) else None
    finished: dict[NullPlan | None, list[Path]] = {kind: [] for kind in kinds}
    done = answered = 0

    def unfinished() -> Iterator[_Part]:
        nonlocal done
        for part in _parts(rows, kinds, folder, labeller.identity):
            finished[part.null].append(part.path)
            if part.path.exists():
                done += part.questions
                progress(done, total)
            else:
                yield part

    for questions in _carried_out(unfinished(), labeller, setup, jobs):
        done += questions
        answered += questions
        progress(done, total)
    if not any(finished.values()):
        raise OutcomesError("There are no rows to label.")
    if not only_null:
        _join(finished[None], out)
    if null is not None:  # last: a run that is stopped here goes on by adding it
        merge_null_tables(finished[null], null_out, labeller.source, null.scale)
    shutil.rmtree(folder)
    return Labelled(answered, read_errors(out))


@dataclass(frozen=True, slots=True)
class _Part:
    """A few pictures with all rows about each, for outcomes (`null` None) or for the noise null."""

    path: Path
    pictures: list[list[Row]]
    null: NullPlan | None

    @property
    def questions(self) -> int:
        return sum(map(len, self.pictures)) * _runs(self.null)


def _runs(null: NullPlan | None) -> int:
    return 1 if null is None else null.runs


def _questions(rows: Sequence[Row], kinds: Sequence[NullPlan | None]) -> int:
    return sum(
        _runs(kind) * sum(kind is None or kind.takes(row.image) for row in rows) for kind in kinds
    )


def _parts(
    rows: Iterable[Row], kinds: Sequence[NullPlan | None], folder: Path, identity: str
) -> Iterator[_Part]:
    pictures = (list(of_one) for _, of_one in groupby(rows, key=lambda row: row.image))
    while chunk := list(islice(pictures, _PICTURES_PER_PART)):
        for kind in kinds:
            taken = [of_one for of_one in chunk if kind is None or kind.takes(of_one[0].image)]
            if taken:
                yield _Part(folder / f"{_name(taken, kind, identity)}.parquet", taken, kind)


def _name(pictures: Sequence[Sequence[Row]], null: NullPlan | None, identity: str) -> str:
    """From everything that decides what will be in the part."""
    content = [identity, None if null is None else (null.scale, null.runs)]
    digest = hashlib.sha256(json.dumps(content).encode())
    for row in (row for of_one in pictures for row in of_one):
        texts = (
            row.sample,
            row.image,
            _version(row.picture),
            row.question,
            row.group,
            row.split,
            row.metric,
        )
        digest.update(json.dumps([*texts, *row.answers]).encode())
    return digest.hexdigest()[:32]


def _version(picture: Path | bytes) -> str:
    """Changes when a picture does: one that was mended is asked about again."""
    if isinstance(picture, bytes):
        return digest_of(picture)
    try:
        found = picture.stat()
    except OSError:
        return str(picture)
    return f"{picture} {found.st_size} {found.st_mtime_ns}"


def _carried_out(
    parts: Iterable[_Part], labeller: Labeller, setup: Setup, jobs: int
) -> Iterator[int]:
    """Do the parts, in any order; the number of questions of each as it is written."""
    if jobs == 1:
        for part in parts:
            yield _carry_out(labeller, part)
        return
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_begin, initargs=(setup, labeller.costs)
    )
    pending: set[Future[int]] = set()
    try:
        for part in parts:
            pending.add(pool.submit(_carry_out_here, part))
            if len(pending) > 2 * jobs:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        yield from (each.result() for each in pending)
    except BrokenProcessPool as error:
        raise OutcomesError(
            f"One of {jobs} labelling processes died, perhaps for want of memory; start again "
            "with fewer. What was finished is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_of_this_process: list[Labeller] = []


def _begin(setup: Setup, costs: CostModel) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: parts that were begun are finished
    use_threads(1)
    _of_this_process.append(Labeller(setup, costs))


def _carry_out_here(part: _Part) -> int:
    return _carry_out(_of_this_process[0], part)


def _carry_out(labeller: Labeller, part: _Part) -> int:
    if part.null is not None:
        runs = labeller.null_outcomes(part.pictures, part.null.scale, part.null.runs)
        write_null_table(part.path, runs, labeller.source, part.null.scale)
        return part.questions
    outcomes, vectors = labeller.outcomes(part.pictures)
    write_image_table(table_beside(part.path), vectors)
    write_outcomes(part.path, outcomes, labeller.source)  # last: it makes the part count
    return part.questions


def _join(parts: Sequence[Path], out: Path) -> None:
    vectors: dict[str, Vector] = {}
    for part in parts:
        table = read_image_table(table_beside(part))
        vectors |= dict(zip(table.images, table.values, strict=True))
    write_image_table(table_beside(out), vectors)
    merge_outcomes(parts, out)
