from __future__ import annotations

import pytest

from predictor.metrics import (
    METRICS,
    VQA_LEAST_ANSWERS,
    anls,
    exact_match,
    relaxed_match,
    score,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Red.", ["red"]),
        ("a red circle", ["the red  circle"]),
        ("Three", ["3"]),
        ("3.0", ["3"]),
        ("$1,250.50", ["1250.5"]),
        ("12%", ["12%"]),
        ("no", ["yes", "no"]),
        ("12:30", ["12:30"]),
        ("-4", ["-4.0"]),
        ("yes,", ["Yes"]),
        ("a", ["A"]),
        ("(A)", ["A."]),
        ("?", ["?"]),
    ],
)
def test_what_counts_as_equal(answer: str, accepted: list[str]) -> None:
    assert exact_match(answer, accepted) == 1.0


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("red", ["dark red"]),
        ("31", ["3"]),
        ("1.2", ["12"]),
        ("4", ["-4"]),
        ("", ["red"]),
        ("12:30", ["1230"]),
        ("red", []),
        ("nan", ["inf"]),
        ("", ["A"]),  # an option, not an article
        ("the", ["A"]),
        ("!", ["?"]),
    ],
)
def test_what_does_not(answer: str, accepted: list[str]) -> None:
    assert exact_match(answer, accepted) == 0.0


@pytest.mark.parametrize(
    ("agreeing", "accuracy"),
    # With k of ten: k annotators see k − 1 others, ten − k see k.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_leaves_out_one_annotator_at_a_time(agreeing: int, accuracy: float) -> None:
    accepted = ["red"] * agreeing + [f"no {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("Red.", accepted) == pytest.approx(accuracy)


def test_vqa_accuracy_with_few_annotators() -> None:
    """Of five with two: two see one other (1/3), three see two (2/3): (2/3 + 6/3) / 5."""
    assert vqa_accuracy("cat", ["cat", "cat", "dog", "cow", "hen"]) == pytest.approx(8 / 15)
    least = ["cat"] * VQA_LEAST_ANSWERS
    assert vqa_accuracy("cat", least) == 1.0
    assert vqa_accuracy("cat", least[1:]) < 1.0
    assert vqa_accuracy("cat", []) == 0.0


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("dont know", "don't know"),
        ("Two", "2"),
        ("none", "0"),
        ("the cat", "cat"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("Coca-Cola.", "coca cola"),
        ("o'clock", "oclock"),
        ("couldnt've", "couldn'tve"),
        ("3.5", "3.5"),
        ("a\nred  car", "red car"),
    ],
)
def test_vqa_answers_are_normalised(answer: str, accepted: str) -> None:
    assert vqa_accuracy(answer, [accepted] * 10) == 1.0


@pytest.mark.parametrize(("answer", "accepted"), [("3.5", "35"), ("lets", "let's"), ("10", "1")])
def test_vqa_answers_stay_different(answer: str, accepted: str) -> None:
    assert vqa_accuracy(answer, [accepted] * 10) == 0.0


@pytest.mark.parametrize(
    ("answer", "accepted", "similarity"),
    [
        ("Nixon", ["nixon"], 1.0),
        ("  1  May ", ["1 may"], 1.0),
        ("nixen", ["nixon"], 0.8),  # one substitution in five letters
        ("ixon", ["nixon"], 0.8),  # one insertion
        ("nixon jr", ["nixon"], 0.625),  # three deletions of eight
        ("ab", ["ac"], 0.5),  # on the threshold
        ("abc", ["axy"], 0.0),  # a third is below it
        ("kitten", ["sitting", "mittens"], 1 - 2 / 7),  # the nearer one counts
        ("", ["nixon"], 0.0),
        ("nixon", [], 0.0),
    ],
)
def test_anls(answer: str, accepted: list[str], similarity: float) -> None:
    assert anls(answer, accepted) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("-99", "-100", True),
        ("100", "-100", False),
        ("12%", "0.12", True),
        ("12%", "12.5%", True),
        ("12%", "12", False),  # as in the source
        ("0.0", "0", True),
        ("0.01", "0", False),
        ("Germany ", "germany", True),
        ("West Germany", "germany", False),
        ("2016", "2015", True),  # years are numbers to it
        ("12", "twelve", False),
        ("nan", "1", False),
    ],
)
def test_relaxed_match(answer: str, accepted: str, right: bool) -> None:
    assert relaxed_match(answer, ["nothing", accepted]) == float(right)


def test_metrics_are_found_by_name() -> None:
    accepted = ["21"] * 10
    assert {metric: score(metric, "20", accepted) for metric in METRICS} == {
        "exact": 0.0,
        "vqa": 0.0,
        "anls": 0.5,
        "relaxed": 1.0,
    }
