"""When an answer counts as right, and how much.

Each metric is a pure function of an answer and the accepted answers of the data set, giving 0 to 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Literal, get_args

from predictor.vqa_text import normalised_answer

Metric = Literal["exact", "vqa", "anls", "relaxed"]
METRICS: tuple[Metric, ...] = get_args(Metric)

VQA_LEAST_ANSWERS = 4  # with fewer annotators not even a unanimous answer could reach 1.0

_VQA_AGREEING = 3  # other annotators with the same answer who make it fully right
_ANLS_LEAST = 0.5
_RELAXED_CHANGE = 0.05

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_PUNCTUATION = re.compile(r"[^\w\s.%:/-]|(?<!\d)[:/]|[.:/-](?!\d)")


def score(metric: Metric, answer: str, accepted: Sequence[str]) -> float:
    """What an answer is worth by a metric, 0 to 1; see the function of its name."""
    return _FUNCTIONS[metric](answer, accepted)


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 if the answer is one of the accepted ones, else 0.0.

    Case, articles, punctuation and spacing do not count, numbers are compared by value, and number
    words up to ten are numbers, as in the VQA evaluation (Antol et al., ICCV 2015).
    """
    given = canonical(answer)
    return float(any(given == canonical(each) for each in accepted))


def canonical(answer: str) -> str:
    """The one form of all answers that are an exact match of each other."""
    text = _normalised(answer)
    try:
        return repr(float(text) + 0.0)  # of two zeros, the positive one
    except ValueError:
        return text


def vqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """VQA accuracy: mean over the annotators of min(1, others with this answer / 3).

    One annotator is left out at a time; of ten, 1, 2, 3, 4 with the answer give 0.3, 0.6, 0.9, 1.

    Follows `vqaEval.py` of Antol et al. (VQA, ICCV 2015; github.com/GT-Vision-Lab/VQA) with its
    normalisation. One difference: the script leaves everything as it is where all annotators agree,
    so that "Yes." would be wrong for ten times "yes"; here answers are always normalised.

    Args:
        accepted: one answer per annotator, repeated as often as it was given.
    """
    given = normalised_answer(answer)
    agreeing = sum(normalised_answer(each) == given for each in accepted)
    total = len(accepted)
    if not agreeing:
        return 0.0
    by_those = min(1.0, (agreeing - 1) / _VQA_AGREEING)
    by_others = min(1.0, agreeing / _VQA_AGREEING)
    return (agreeing * by_those + (total - agreeing) * by_others) / total


def anls(answer: str, accepted: Sequence[str]) -> float:
    """ANLS: 1 − edit distance ÷ longer length, of the nearest accepted answer; 0 below one half.

    Case and runs of spaces do not count. From Biten et al., "Scene Text Visual Question Answering"
    (ICCV 2019); a similarity of exactly one half is kept, as in the scoring script of the Robust
    Reading Competition, where DocVQA is judged.
    """
    given = _spaced(answer)
    nearest = max((_similarity(given, _spaced(each)) for each in accepted), default=0.0)
    return nearest if nearest >= _ANLS_LEAST else 0.0


def relaxed_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 if a number is within 5% of an accepted one, or a text equal to one, else 0.0.

    ChartQA's relaxed accuracy (Masry et al., Findings of ACL 2022), computed as in pix2struct's
    `relaxed_correctness`: "12%" is 0.12, texts are equal up to case. An accepted zero must be met
    exactly.
    """
    return float(any(_relaxed_equal(answer.strip(), each.strip()) for each in accepted))


_FUNCTIONS: Mapping[Metric, Callable[[str, Sequence[str]], float]] = {
    "exact": exact_match,
    "vqa": vqa_accuracy,
    "anls": anls,
    "relaxed": relaxed_match,
}


def _normalised(answer: str) -> str:
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", answer.casefold()))
    words = [_NUMBERS.get(word, word) for word in text.split()]
    kept = [word for word in words if word not in _ARTICLES]
    # Option "A" and the sign "?" are answers too: not everything can be left away.
    return " ".join(kept or words) or answer.strip().casefold()


def _spaced(answer: str) -> str:
    return " ".join(answer.lower().split())


def _similarity(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    return 1 - _edit_distance(one, other) / longer if longer else 1.0


def _edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions from one text to the other (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, start=1):
        diagonal, row[0] = row[0], at
        for to, wanted in enumerate(other, start=1):
            substituted = diagonal + (letter != wanted)
            diagonal = row[to]
            row[to] = min(substituted, row[to] + 1, row[to - 1] + 1)
    return row[-1]


def _relaxed_equal(given: str, wanted: str) -> bool:
    number, target = _number(given), _number(wanted)
    if number is None or target is None:
        return given.lower() == wanted.lower()
    return abs(number - target) <= _RELAXED_CHANGE * abs(target)


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    if not isfinite(number):  # "nan" and "infinity" are words
        return None
    return number / 100 if percent else number
