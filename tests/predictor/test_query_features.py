from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from predictor.query_features import QueryProjection, ngrams, query_features

QUESTIONS = [
    f"{form} {thing}{where}?"
    for form in (
        "What is the colour of the",
        "How many corners has the",
        "Where is the",
        "Read the",
    )
    for thing in ("small star", "big circle", "word", "number on the label", "third bar")
    for where in ("", " in the picture", " at the top")
]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does the sign say?", {"query.form_what", "query.about_text"}),
        ("How many red circles are there?", {"query.form_how_many", "query.about_colour"}),
        ("Is the star left of the square?", {"query.form_yes_no", "query.about_place"}),
        ("What is the total?", {"query.form_what", "query.about_amount"}),
        ("Which bar is the highest?", {"query.form_which", "query.about_chart"}),
        ("WHAT COLOUR IS THE BACKGROUND", {"query.about_colour", "query.about_overall"}),
    ],
)
def test_forms_and_topics(question: str, expected: set[str]) -> None:
    features = query_features(question)
    found = {name for name, value in features.items() if value and "." in name}
    assert expected <= found


def test_counts() -> None:
    features = query_features('Does "42 Main Street" stand at the top?')
    assert features["query.digits"] == 2
    assert features["query.quoted"] == 1
    assert features["query.words"] == 8
    assert features["query.capitals"] == 2
    assert features["query.longest_word"] == 6


@pytest.mark.parametrize("question", ["", "   ", "???", "这是什么颜色", "x" * 100_000, "a\0b\n\n"])
def test_any_text_has_the_same_finite_features(question: str) -> None:
    features = query_features(question)
    assert list(features) == list(query_features("What?"))
    assert np.isfinite(list(features.values())).all()
    assert np.isfinite(QueryProjection.fit(QUESTIONS, size=4).apply(question)).all()


def test_the_projection_is_what_scikit_learn_computes() -> None:
    projection = QueryProjection.fit(QUESTIONS, size=8, seed=1)
    distinct = sorted(set(QUESTIONS))
    weights = TfidfVectorizer(analyzer=ngrams, sublinear_tf=True).fit_transform(distinct)
    expected = TruncatedSVD(8, random_state=1).fit(weights).transform(weights)
    found = np.stack([projection.apply(question) for question in distinct])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_projection_tells_kinds_of_question_apart() -> None:
    projection = QueryProjection.fit(QUESTIONS, size=8)

    def likeness(one: str, other: str) -> float:
        a, b = projection.apply(one), projection.apply(other)
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    counting = "How many corners has the small circle?"
    assert likeness(counting, "How many corners has the word?") > 0.6
    assert likeness(counting, "How many corners has the word?") > likeness(
        counting, "Read the number on the label?"
    )


def test_unknown_text_projects_to_nothing() -> None:
    assert QueryProjection.fit(QUESTIONS, size=4).apply("ζζζ").tolist() == [0, 0, 0, 0]


def test_one_question_leaves_no_direction_to_learn() -> None:
    projection = QueryProjection.fit(["What is it?"] * 5)
    assert projection.size == 0
    assert projection.apply("What is it?").shape == (0,)


def test_arrays_that_do_not_fit_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="one row for each of 2 n-grams"):
        QueryProjection(("a", "b"), np.ones(2), np.ones((3, 4)))


def test_the_number_of_threads_changes_nothing() -> None:
    questions = [f"what is the {word} of item {n}?" for n in range(40) for word in ("price", "sum")]
    fitted = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            fitted.append(QueryProjection.fit(questions, size=8).directions)
    assert fitted[0].tobytes() == fitted[1].tobytes()
