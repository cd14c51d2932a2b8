"""What a question asks for, from its text alone.

Two parts: counts and forms that mean the same for every model (pure functions), and a projection of
word and character n-grams that is fitted on the training questions (TF-IDF, then truncated SVD) and
travels in the artefact as arrays. Serving applies it with a few lines of numpy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

VERSION = "query-1"

# n-grams fall into this many buckets: enough that a question's own hardly ever share one.
NGRAM_BUCKETS = 2**18
_HASHED = "#"  # begins no n-gram
_ABOUT = "query.about_"
OTHER_TOPIC = "other"

_WORD = re.compile(r"[a-z]+|\d+")
_LONGEST = 512  # characters read; a question says what it wants early

_FORMS = {
    name: re.compile(pattern)
    for name, pattern in {
        "yes_no": r"^(is|are|am|was|were|does|do|did|can|could|has|have|will)\b",
        "what": r"\bwhat\b",
        "which": r"\bwhich\b",
        "where": r"\bwhere\b",
        "who": r"\b(who|whose)\b",
        "when": r"\b(when|what (time|date|year|day))\b",
        "how_many": r"\b(how many|number of|count)\b",
        "how_much": r"\bhow (much|big|large|tall|long|far|old)\b",
        "command": r"^(please )?(name|read|list|tell|give|write|state|find|count|describe|say)\b",
        "choice": r"\bor\b",
    }.items()
}
_TOPICS = {
    name: re.compile(pattern)
    for name, pattern in {
        "text": r"\b(read|reads|text|words?|written|writing|says?|spell(ed|ing)?|letters?|sign"
        r"|label|title|caption|heading|printed|handwritten|transcribe|digits?|numbers?|numerals?)\b",
        "amount": r"\b(total|subtotal|prices?|costs?|amount|sum|paid|tax|date|values?|score"
        r"|percent|percentage|quantity)\b",
        "chart": r"\b(chart|graph|plot|bars?|lines?|pie|slice|axis|legend|table|row|column)\b",
        "colour": r"\b(colou?rs?|red|green|blue|yellow|orange|purple|pink|brown|black|white"
        r"|gr[ae]y)\b",
        "place": r"\b(left|right|above|below|under|over|top|bottom|upper|lower|cent(er|re)"
        r"|middle|between|beside|next|near|corner|inside|behind)\b",
        "shape": r"\b(shapes?|circles?|squares?|triangles?|stars?|rectangles?|hexagons?|pentagons?"
        r"|diamonds?|cross(es)?|rings?|hearts?)\b",
        "compare": r"\b(than|more|less|fewer|most|least|(larg|bigg|small|high|low|tall|short|long)"
        r"(er|est)|same|equal|different)\b",
        "small": r"\b(small|tiny|little|fine|detail|details)\b",
        "overall": r"\b(background|scene|main(ly)?|overall|dominant|mostly|picture|photo|image)\b",
    }.items()
}


def query_features(question: str) -> dict[str, float]:
    """Every hand-made query feature by name, in a fixed order."""
    text = question[:_LONGEST].strip().lower()
    words = _WORD.findall(text)
    features = {
        "query.characters": float(len(text)),
        "query.words": float(len(words)),
        "query.longest_word": float(max(map(len, words), default=0)),
        "query.digits": float(sum(character.isdigit() for character in text)),
        "query.quoted": float(text.count('"') // 2 + text.count("“")),
        "query.capitals": float(
            sum(word[:1].isupper() for word in question[:_LONGEST].split()[1:])
        ),
        "query.lines": float(text.count("\n") + 1),
    }
    for name, pattern in _FORMS.items():
        features[f"query.form_{name}"] = float(pattern.search(text) is not None)
    for name, pattern in _TOPICS.items():
        features[_ABOUT + name] = float(pattern.search(text) is not None)
    return features


def topic(values: Iterable[float]) -> str:
    """What a question is about, as far as its hand-made features tell: the group it counts to."""
    named = zip(query_features(""), values, strict=True)
    about = (n.removeprefix(_ABOUT) for n, value in named if n.startswith(_ABOUT) and value)
    return next(about, OTHER_TOPIC)


def ngrams(question: str) -> Iterator[str]:
    """Words, word pairs, and the three- and four-letter pieces of words (with their borders)."""
    words = _WORD.findall(question[:_LONGEST].lower())
    yield from words
    for first, second in pairwise(words):
        yield f"{first} {second}"
    for word in words:
        bordered = f"<{word}>"
        for length in (3, 4):
            for start in range(len(bordered) - length + 1):
                yield bordered[start : start + length]


@dataclass(frozen=True, slots=True, eq=False)
class QuestionFeatures:
    """What a predictor may see of a question, without its text.

    Args:
        values: as `query_features.query_features`, in its order.
        colours: those that it names.
        buckets, counts: of its n-grams, hashed; ascending buckets.
    """

    values: tuple[float, ...]
    colours: tuple[str, ...]
    buckets: tuple[int, ...]
    counts: tuple[int, ...]


def bucket_of(ngram: str) -> int:
    """Where an n-gram is counted; the same in every process and release."""
    return crc32(ngram.encode()) % NGRAM_BUCKETS


@dataclass(frozen=True, slots=True, eq=False)
class QueryProjection:
    """A fitted projection of a question's n-grams to K numbers.

    One that is fitted on records knows n-grams by their buckets only, `#123`.

    Args:
        vocabulary: the V n-grams it knows, or their buckets.
        idf: V inverse document frequencies.
        directions: V×K, the leading right singular vectors of the training questions' TF-IDF.
    """

    vocabulary: tuple[str, ...]
    idf: NDArray[np.float64]
    directions: NDArray[np.float64]
    _index: dict[str, int] = field(init=False, repr=False)
    _buckets: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = len(self.vocabulary)
        if self.idf.shape != (rows,) or self.directions.ndim != 2 or len(self.directions) != rows:
            raise ValueError(f"idf and directions must have one row for each of {rows} n-grams")
        object.__setattr__(self, "_index", {term: row for row, term in enumerate(self.vocabulary)})
        buckets = map(_bucket_of_term, self.vocabulary)
        object.__setattr__(self, "_buckets", {b: row for row, b in enumerate(buckets)})

    @property
    def size(self) -> int:
        return int(self.directions.shape[1])

    def apply(self, question: str) -> NDArray[np.float64]:
        """K coordinates of a question; zeros where it shares no n-gram with the vocabulary."""
        if self.is_hashed:
            return self.apply_counts(Counter(map(bucket_of, ngrams(question))))
        known = Counter(self._index[term] for term in ngrams(question) if term in self._index)
        return self._project(known)

    @property
    def is_hashed(self) -> bool:
        """Whether it knows buckets only."""
        return bool(self.vocabulary) and self.vocabulary[0].startswith(_HASHED)

    def apply_counts(self, counts: Mapping[int, int]) -> NDArray[np.float64]:
        """The same for a question of which only its n-grams' buckets are known.

        Of a vocabulary of n-grams those that share a bucket cannot be told apart, and the last one
        counts: two of a hundred, where there are four thousand.
        """
        return self._project({self._buckets[b]: n for b, n in counts.items() if b in self._buckets})

    def _project(self, known: Mapping[int, int]) -> NDArray[np.float64]:
        if not known:
            return np.zeros(self.size)
        rows = np.fromiter(known.keys(), dtype=np.intp)
        counts = np.fromiter(known.values(), dtype=np.float64)
        weights = (1.0 + np.log(counts)) * self.idf[rows]
        coordinates: NDArray[np.float64] = weights @ self.directions[rows]
        return coordinates / np.sqrt(weights @ weights)

    @classmethod
    def fit(
        cls, questions: Sequence[str], *, size: int = 24, terms: int = 4096, seed: int = 0
    ) -> QueryProjection:
        """Learn n-grams and directions from training questions; repeats carry no extra weight.

        Few or uniform questions give fewer directions than asked for, down to none.
        """
        return cls._fit(sorted(set(questions)), ngrams, size, terms, seed)

    @classmethod
    def fit_counts(
        cls,
        questions: Iterable[Mapping[int, int]],
        *,
        size: int = 24,
        terms: int = 4096,
        seed: int = 0,
    ) -> QueryProjection:
        """The same from the buckets of the questions' n-grams and their counts."""
        distinct = sorted({tuple(sorted(counts.items())) for counts in questions})

        def spelled(counts: Sequence[tuple[int, int]]) -> list[str]:
            return [f"{_HASHED}{bucket}" for bucket, count in counts for _ in range(count)]

        return cls._fit(distinct, spelled, size, terms, seed)

    @classmethod
    def _fit(
        cls,
        distinct: Sequence[Any],
        analyzer: Callable[[Any], Iterable[str]],
        size: int,
        terms: int,
        seed: int,
    ) -> QueryProjection:
        # Only fitting needs scikit-learn; a service that answers must not wait for its import.
        from sklearn.decomposition import TruncatedSVD  # noqa: PLC0415
        from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        vectorizer = TfidfVectorizer(analyzer=analyzer, max_features=terms, sublinear_tf=True)
        weights = vectorizer.fit_transform(distinct)
        vocabulary = tuple(str(term) for term in vectorizer.get_feature_names_out())
        size = min(size, min(weights.shape) - 1)
        if size < 1:
            return cls(vocabulary, vectorizer.idf_, np.zeros((len(vocabulary), 0)))
        with threadpool_limits(1):  # sums in another order would be another artefact
            svd = TruncatedSVD(size, random_state=seed).fit(weights)
        return cls(vocabulary, vectorizer.idf_, np.ascontiguousarray(svd.components_.T))


def _bucket_of_term(term: str) -> int:
    return int(term[1:]) if term.startswith(_HASHED) else bucket_of(term)
