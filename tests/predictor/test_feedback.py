"""Feedback as it travels and lies in files, and what is said of it in sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from predictor.feedback_records import SCHEMA, decode, encode, scale_name
from predictor.feedback_summary import summarised
from predictor.label_records import decode as decode_labels
from predictor.label_records import with_correctness
from predictor.metrics import canonical, exact_match
from predictor.record_store import CORRECTNESS, FEEDBACK, LABELS, RecordStore
from predictor.samples import of_labels
from tests.predictor import synthetic
from tests.predictor.test_retrain import NOW, label

AT = round(NOW.timestamp() * 1e6)


def row(number: int, score: float, *scales: int, group: str = "text") -> bytes:
    return encode(
        {
            "request_id": f"{number:032x}",
            "at": AT,
            "given_at": AT + 5,
            "key": None,
            "score": score,
            "answer_given": False,
            "served": "m3-tiny",
            "model_identity": "0" * 64,
            "predictor": "one",
            "bound": 0.05,
            "images": [f"picture {number // 2}"],
            "scales": list(scales),
            "reasons": ["predicted"] * len(scales),
            "image_tokens": sum(scales),
            "group": group,
        }
    )


def test_what_travels_comes_back_and_what_is_no_feedback_costs_no_other(tmp_path: Path) -> None:
    broken = [b"", b"[]", b"{}", row(1, 1.0, 9).replace(b"text", b"\xff"), b'{"format":2}']
    table, positions = decode([row(0, 1.0, 9), *broken, row(2, 0.0, 36)])
    assert positions == [1, 2, 3, 4, 5]
    assert table.schema.equals(SCHEMA)
    assert table["score"].to_pylist() == [1.0, 0.0]
    store = RecordStore(str(tmp_path))
    for _ in range(2):  # as after a recorder was killed
        store.append(FEEDBACK, table)
    assert store.count(FEEDBACK) == 2


def test_accuracy_is_told_by_scale_and_by_group(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    rows = [row(n, float(n % 4 > 0), 9) for n in range(40)]
    rows += [row(100 + n, float(n % 2), 576, group="place") for n in range(20)]
    rows += [row(200, 0.5, 9, 36, group="place")]
    store.append(FEEDBACK, decode(rows)[0])
    found = summarised(store)
    assert found.overall is not None
    assert (found.overall.answers, found.overall.right.value) == (61, pytest.approx(41 / 61))
    assert list(found.by_scale) == ["9", "576", "several"]
    assert found.by_scale["9"].right.value == 0.75
    low, high = found.by_scale["9"].right.low, found.by_scale["9"].right.high
    assert low is not None
    assert high is not None
    assert 0.5 < low < 0.75 < high < 0.95
    assert {name: each.answers for name, each in found.by_group.items()} == {
        "place": 21,
        "text": 40,
    }
    assert found.by_both["several"]["place"].answers == 1
    assert found.by_both["several"]["place"].right.low is None  # one picture tells nothing
    assert summarised(RecordStore(str(tmp_path / "empty"))).overall is None


def test_labels_of_correctness_are_another_target(tmp_path: Path) -> None:
    """The same requests; learning reads one kind or the other."""
    store = RecordStore(str(tmp_path))
    encoded = [label(number) for number in range(3)]
    store.append(LABELS, decode_labels(encoded)[0])
    right = [True, False, True, False, True]
    judged, broken = decode_labels([with_correctness(each, right) for each in encoded[:2]])
    assert broken == []
    store.append(CORRECTNESS, judged)
    agreement, correctness = of_labels(store), of_labels(store, target="correctness")
    assert (len(agreement), len(correctness)) == (3, 2)
    assert np.array_equal(correctness.success, [right] * 2)
    assert (agreement.target, correctness.target) == ("agreement", "correctness")
    assert np.array_equal(
        agreement.success[:2], synthetic.outcome_table(700).success("agreement")[:2]
    )


def test_equal_forms_are_exact_matches_and_no_others_are() -> None:
    answers = ["Two.", "2", "2.0", "the two", "-0", "0", "nan", "A", "a cat", "cats", "1,000", ""]
    for one in answers:
        for other in answers:
            assert (canonical(one) == canonical(other)) == bool(exact_match(one, [other]))
    assert canonical("Two.") == canonical("2.0") != canonical("3")
    assert canonical("-0") == canonical("zero")


def test_images_at_one_scale_count_to_it() -> None:
    assert [scale_name(s) for s in ((9,), (9, 9), (9, 36))] == ["9", "9", "several"]
