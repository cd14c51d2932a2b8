"""What happened to a question at every scale: the table that predictors are trained and judged on.

One row per sample × scale on disk (Parquet, readable by any tool), one row per sample in memory.
The file names the checkpoint that answered in its metadata, so that a predictor can never be
trained for another one by accident.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m3_backend.scales import ScaleLadder
from predictor.errors import OutcomesError
from predictor.whole_file import write_parquet

Target = Literal["agreement", "correctness"]
Split = Literal["train", "calibrate", "threshold", "test", "shifted"]
SPLITS: tuple[Split, ...] = get_args(Split)

CORRECT_FROM = 0.5  # a graded answer counts as right from here on
AGREES_FROM = 0.9  # share of equal positions from which a long answer counts as agreeing
_SHORT_ANSWER = 16  # tokens up to which agreement means equality

SCHEMA = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("scale", pa.int32(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("correct", pa.float64()),
        pa.field("agrees", pa.float64()),
        pa.field("reference_logprob", pa.float32()),
        pa.field("image_tokens", pa.int32(), nullable=False),
        pa.field("ms", pa.float32(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
    ]
)
_LATER_COLUMNS = ("metric",)  # tables written before they came are read without them
_METADATA = "m3."
_FORMAT = "1"


def agreement_share(is_equal: bool, matches: Sequence[bool]) -> float:
    """How far an answer is the finest scale's: equal or not, by position for long answers.

    Args:
        matches: per token of the finest scale's answer.
    """
    return float(is_equal) if len(matches) <= _SHORT_ANSWER else sum(matches) / len(matches)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one scale made of one question.

    Args:
        sample: names the (image, question) pair; the same at every scale.
        image: names the picture; pictures, not questions, are what splits and statistics count.
        group: the family of questions it belongs to, for reports.
        split: which part of the procedure may look at it.
        answer: the greedy answer.
        correct: 0 (wrong) to 1 (right) by the row's metric; None without ground truth.
        agrees: share of answer positions equal to the finest scale's greedy answer, 1.0 if all are.
        reference_logprob: natural log-probability of the finest scale's answer at this scale.
        image_tokens: what the picture took in the prompt.
        ms: time for this scale, vision encoding excluded.
        error: empty, or what went wrong; a failed row is never a wrong answer.
        metric: what `correct` was measured by, see `predictor.metrics`; empty where it is missing.
    """

    sample: str
    image: str
    group: str
    split: Split
    question: str
    scale: int
    answer: str
    correct: float | None
    agrees: float | None
    reference_logprob: float | None
    image_tokens: int
    ms: float
    error: str = ""
    metric: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise OutcomesError(
                f"{self.sample}: split {self.split!r} is not one of {', '.join(SPLITS)}."
            )
        for name, share in (("correct", self.correct), ("agrees", self.agrees)):
            if share is not None and (isnan(share) or not 0.0 <= share <= 1.0):
                raise OutcomesError(
                    f"{self.sample}: {name} is {share}, it must be in [0, 1] or missing."
                )


@dataclass(frozen=True, slots=True)
class OutcomeSource:
    """The checkpoint that answered: its name, weights hash, preprocessing hash and scales."""

    model: str
    model_identity: str
    processor: str
    ladder: ScaleLadder

    def to_metadata(self) -> dict[str, str]:
        return {
            _METADATA + "format": _FORMAT,
            _METADATA + "model": self.model,
            _METADATA + "model_identity": self.model_identity,
            _METADATA + "processor": self.processor,
            _METADATA + "scales": ",".join(map(str, self.ladder.scales)),
            _METADATA + "grid_side": str(self.ladder.grid_side),
        }

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, path: Path) -> OutcomeSource:
        text = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
        if text.get(_METADATA + "format") != _FORMAT:
            raise OutcomesError(
                f"{path} is not an outcomes table of format {_FORMAT}; write it with `label`."
            )
        try:
            scales = tuple(int(scale) for scale in text[_METADATA + "scales"].split(","))
            ladder = ScaleLadder(scales, int(text[_METADATA + "grid_side"]))
            return cls(
                text[_METADATA + "model"],
                text[_METADATA + "model_identity"],
                text[_METADATA + "processor"],
                ladder,
            )
        except (KeyError, ValueError) as error:
            raise OutcomesError(
                f"{path} does not say which checkpoint answered; label it again."
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class OutcomeTable:
    """Complete samples (every scale answered), one row each; N samples × S scales.

    Args:
        sample, image, group, split, question: N strings each.
        correct, agrees: N×S shares in [0, 1]; NaN where unknown.
        reference_logprob: N×S natural log-probabilities of the finest scale's answer; NaN likewise.
        image_tokens, ms: N×S.
        failed: samples left out because at least one scale is missing or carries an error.
    """

    source: OutcomeSource
    sample: NDArray[np.object_]
    image: NDArray[np.object_]
    group: NDArray[np.object_]
    split: NDArray[np.object_]
    question: NDArray[np.object_]
    correct: NDArray[np.float64]
    agrees: NDArray[np.float64]
    reference_logprob: NDArray[np.float64]
    image_tokens: NDArray[np.int64]
    ms: NDArray[np.float64]
    failed: int = 0

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> OutcomeTable:
        """The same table with only these rows, in this order."""
        per_sample = {
            name: getattr(self, name)[rows]
            for name in (
                *("sample", "image", "group", "split", "question"),
                *("correct", "agrees", "reference_logprob", "image_tokens", "ms"),
            )
        }
        return OutcomeTable(source=self.source, failed=self.failed, **per_sample)

    def part(self, *splits: Split) -> OutcomeTable:
        return self.take(np.isin(self.split, splits))

    def success(self, target: Target) -> NDArray[np.bool_]:
        """N×S: did the scale succeed, by the target's own definition.

        Raises:
            OutcomesError: some sample has no value for this target.
        """
        shares, least = (
            (self.correct, CORRECT_FROM) if target == "correctness" else (self.agrees, AGREES_FROM)
        )
        if np.isnan(shares).any():
            raise OutcomesError(
                f"{int(np.isnan(shares).any(axis=1).sum())} samples have no {target}."
            )
        return shares >= least

    def content_hash(self) -> str:
        """SHA-256 over everything a predictor learns from, independent of the order of rows."""
        digest = hashlib.sha256(repr(sorted(self.source.to_metadata().items())).encode())
        order = np.argsort(self.sample, kind="stable")
        for column in (self.sample, self.image, self.group, self.split, self.question):
            digest.update("\0".join(column[order]).encode() + b"\1")
        for numbers in (self.correct, self.agrees, self.reference_logprob):
            digest.update(np.ascontiguousarray(numbers[order], dtype="<f8").tobytes())
        return digest.hexdigest()


def assign_split(image: str, seed: int = 0) -> Split:
    """A split from nothing but the picture's name.

    50% train, 15% calibrate, 15% threshold, 20% test.
    """
    hashed = hashlib.sha256(f"{seed}:{image}".encode()).digest()
    position = int.from_bytes(hashed[:8], "big") / 2**64
    bounds: tuple[tuple[float, Split], ...] = (
        (0.5, "train"),
        (0.65, "calibrate"),
        (0.8, "threshold"),
    )
    return next((split for bound, split in bounds if position < bound), "test")


def write_outcomes(path: Path, outcomes: Iterable[Outcome], source: OutcomeSource) -> None:
    """Write rows as a table; the file appears complete or not at all."""
    schema = SCHEMA.with_metadata(source.to_metadata())
    rows = [asdict(outcome) for outcome in outcomes]
    write_parquet(path, pa.Table.from_pylist(rows, schema=schema))


def merge_outcomes(parts: Sequence[Path], path: Path) -> None:
    """Write the rows of several tables of one source as one table."""
    write_parquet(path, pa.concat_tables([pq.read_table(part) for part in parts]))


def read_samples(path: Path) -> tuple[OutcomeSource, frozenset[str]]:
    """Who answered in a table and which samples it holds, failed ones included.

    Raises:
        OutcomesError: not an outcomes table.
    """
    table, source = _read(path)
    return source, frozenset(table["sample"].to_pylist())


def read_errors(path: Path) -> dict[str, str]:
    """What went wrong, by sample, with the samples of a table that failed at some scale.

    Raises:
        OutcomesError: not an outcomes table.
    """
    table, _ = _read(path)
    rows = zip(table["sample"].to_pylist(), table["error"].to_pylist(), strict=True)
    return {sample: error for sample, error in rows if error}


def _read(path: Path) -> tuple[pa.Table, OutcomeSource]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise OutcomesError(f"{path} cannot be read as Parquet.") from error
    source = OutcomeSource.from_metadata(table.schema.metadata, path)
    for name in set(_LATER_COLUMNS).difference(table.schema.names):
        table = table.append_column(name, pa.array([""] * len(table), pa.string()))
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    if missing:
        raise OutcomesError(f"{path} lacks the columns {', '.join(missing)}.")
    return table.select(SCHEMA.names).cast(SCHEMA), source


def read_outcomes(path: Path) -> OutcomeTable:
    """Read and check a table of outcomes.

    Samples with a missing or failed scale are left out and counted in `failed`.

    Raises:
        OutcomesError: not an outcomes table, a sample × scale given twice, a scale off the ladder,
            a sample whose rows disagree about its image, question, group or split, or an image in
            two splits.
    """
    return _pivot(*_read(path), path)


def _pivot(table: pa.Table, source: OutcomeSource, path: Path) -> OutcomeTable:
    scales = np.asarray(source.ladder.scales)
    scale = table["scale"].to_numpy()
    if not np.isin(scale, scales).all():
        raise OutcomesError(
            f"{path} holds scales that are not on its own ladder {source.ladder.scales}."
        )
    names, first, row = np.unique(_strings(table, "sample"), return_index=True, return_inverse=True)
    column = np.searchsorted(scales, scale)
    counts = np.zeros((len(names), len(scales)), dtype=np.int64)
    np.add.at(counts, (row, column), 1)
    if (counts > 1).any():
        raise OutcomesError(
            f"{path}: sample {names[np.argmax(counts.max(axis=1))]!r} has a scale twice."
        )

    texts = {}
    for name in ("image", "group", "split", "question"):
        values = _strings(table, name)
        texts[name] = values[first]
        if (values != values[first][row]).any():
            raise OutcomesError(f"{path}: rows of one sample disagree about their {name}.")
    _require_one_split_per_image(texts["image"], texts["split"], path)

    def matrix(name: str) -> NDArray[np.float64]:
        values = np.full((len(names), len(scales)), np.nan)
        values[row, column] = table[name].to_numpy(zero_copy_only=False)
        return values

    answered = np.zeros((len(names), len(scales)), dtype=bool)
    answered[row, column] = _strings(table, "error") == ""
    complete = answered.all(axis=1)
    return OutcomeTable(
        source=source,
        sample=names[complete],
        correct=matrix("correct")[complete],
        agrees=matrix("agrees")[complete],
        reference_logprob=matrix("reference_logprob")[complete],
        image_tokens=matrix("image_tokens")[complete].astype(np.int64),
        ms=matrix("ms")[complete],
        failed=int((~complete).sum()),
        **{name: values[complete] for name, values in texts.items()},
    )


def _strings(table: pa.Table, name: str) -> NDArray[np.object_]:
    return cast(NDArray[np.object_], np.asarray(table[name].to_pylist(), dtype=object))


def _require_one_split_per_image(
    image: NDArray[np.object_], split: NDArray[np.object_], path: Path
) -> None:
    unknown = set(split) - set(SPLITS)
    if unknown:
        raise OutcomesError(f"{path}: unknown splits {', '.join(sorted(unknown))}.")
    splits_of = Counter(name for name, _ in set(zip(image, split, strict=True)))
    torn = [name for name, count in splits_of.items() if count > 1]
    if torn:
        raise OutcomesError(
            f"{path}: {len(torn)} images (such as {torn[0]!r}) are in more than one split; "
            "splits are made by image."
        )
