"""When an answer counts as right."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_PUNCTUATION = re.compile(r"[^\w\s.%:/-]|(?<!\d)[:/]|[.:/-](?!\d)")


def exact_match(answer: str, accepted: Iterable[str]) -> float:
    """1.0 if the answer is one of the accepted ones, else 0.0.

    Case, articles, punctuation and spacing do not count, numbers are compared by value, and number
    words up to ten are numbers, as in the VQA evaluation (Antol et al., ICCV 2015).
    """
    given = _normalised(answer)
    return float(any(_equal(given, _normalised(each)) for each in accepted))


def _normalised(answer: str) -> str:
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", answer.casefold()))
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in _ARTICLES)


def _equal(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False
