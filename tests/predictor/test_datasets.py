from __future__ import annotations

import json
from pathlib import Path

import pytest

from predictor.datasets import read_jsonl, world_rows
from predictor.errors import OutcomesError
from predictor.records import assign_split


def written(folder: Path, *lines: str) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_rows_of_one_picture_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"picture")
    path = written(
        tmp_path,
        json.dumps({"image": "b.png", "question": "What?", "answers": ["red", "crimson"]}),
        "",
        json.dumps(
            {"image": "a.png", "question": "Why?", "sample": 7, "group": "g", "split": "test"}
        ),
        json.dumps({"image": "b.png", "question": "How many?", "answer": 3}),
    )
    first, second, third = read_jsonl(path)
    assert (first.image, first.sample, first.group, first.split) == ("a.png", "7", "g", "test")
    assert first.answers == ()
    assert (second.question, second.answers) == ("What?", ("red", "crimson"))
    assert (third.question, third.answers) == ("How many?", ("3",))
    assert second.split == third.split == assign_split("b.png")
    assert second.read_picture() == b"picture"
    assert len({row.sample for row in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"question": "What?"}', "line 2: 'image' must be"),
        ('{"image": "a.png", "question": ""}', "line 2: 'question' must be"),
        ('{"image": "a.png", "question": "W?", "answers": "red"}', "line 2: 'answers'"),
        ('{"image": "a.png", "question": "W?", "split": "dev"}', "line 2: split 'dev'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, '{"image": "a.png", "question": "What?"}', line)
    with pytest.raises(OutcomesError, match=message):
        read_jsonl(path)


def test_the_worlds_give_pictures_that_the_model_has_not_seen() -> None:
    rows = list(world_rows(6, shifted=2))
    assert rows == list(world_rows(6, shifted=2))
    assert rows != list(world_rows(6, shifted=2, seed=1))
    assert {row.split for row in rows if row.image.startswith("shifted")} == {"shifted"}
    assert not any(row.image.startswith("train") for row in rows)
    assert len({row.sample for row in rows}) == len(rows)
    assert all(row.answers and row.read_picture().startswith(b"\x89PNG") for row in rows)
    assert len(list(world_rows(6, questions=1))) == 6
