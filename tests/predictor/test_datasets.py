from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from predictor.datasets import check_pictures, read_dataset, read_jsonl, world_rows
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
        (r'{"image": "a\u0000.png", "question": "W?"}', "line 2: 'image' holds a NUL"),
        ('{"image": "%s", "question": "W?"}' % ("A" * 5000), "line 2: no file can be called 'AAA"),
        ('{"image": "a.png", "question": "W?", "answers": "red"}', "line 2: 'answers'"),
        ('{"image": "a.png", "question": "W?", "split": "dev"}', "line 2: split 'dev'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, '{"image": "a.png", "question": "What?"}', line)
    with pytest.raises(OutcomesError, match=message):
        read_jsonl(path)


def test_null_means_left_out_and_an_id_beside_the_picture_is_no_textvqa(tmp_path: Path) -> None:
    ask = {"image": "a.png", "image_id": "a", "question": "What?"}
    path = written(
        tmp_path,
        json.dumps(ask | {"answer": None, "group": None, "split": None, "metric": None}),
        json.dumps(ask | {"answers": None, "answer": "red"}),
        json.dumps(ask | {"answers": []}),
    )
    dataset = read_dataset(path)
    assert (dataset.format, dataset.problems) == ("jsonl", ())
    assert [row.answers for row in dataset.rows] == [(), ("red",), ()]


def test_every_problem_is_named_and_the_other_rows_are_read(tmp_path: Path) -> None:
    ask = {"image": "a.png", "question": "What?"}
    path = written(
        tmp_path,
        json.dumps(ask | {"sample": "s", "split": "test"}),
        "{",
        json.dumps(ask | {"image": "b.png", "sample": "s"}),
        json.dumps(ask | {"split": "train"}),
        json.dumps(ask | {"metric": "bleu"}),
        json.dumps(ask | {"metric": "vqa", "answers": ["red"] * 3}),
        json.dumps({"image": "c.png", "question": "Why?", "metric": "vqa", "answers": ["x"] * 4}),
    )
    dataset = read_dataset(path)
    assert dataset.format == "jsonl"
    assert [row.place for row in dataset.rows] == [f"{path}, line 1", f"{path}, line 7"]
    assert [row.metric for row in dataset.rows] == ["exact", "vqa"]
    assert [str(problem).removeprefix(f"{path}, ") for problem in dataset.problems] == [
        "line 2: not JSON.",
        f"line 3: sample 's' is there already ({path}, line 1).",
        f"line 4: a.png is in split 'train' here and in 'test' before ({path}, line 1); "
        "splits are made by picture.",
        "line 5: metric 'bleu' is not one of exact, vqa, anls, relaxed.",
        "line 6: metric 'vqa' counts who agrees among several people and needs 4 answers or more, "
        "here are 3; another metric such as 'exact' takes one.",
    ]


def test_a_metric_is_the_rows_own_or_the_one_asked_for(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        json.dumps({"image": "a.png", "question": "What?", "metric": "relaxed"}),
        json.dumps({"image": "b.png", "question": "What?"}),
    )
    assert [row.metric for row in read_dataset(path, metric="anls").rows] == ["relaxed", "anls"]


def test_pictures_are_looked_at_once_and_their_rows_named(tmp_path: Path) -> None:
    Image.effect_noise((32, 32), 50).save(tmp_path / "good.png")
    for copy in ("twin.png", "same split.png"):
        (tmp_path / copy).write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    splits = {"good.png": "train", "twin.png": "test", "same split.png": "train"}
    asked = ["good.png", "cut.png", "absent", "good.png", "twin.png", "same split.png", "cut.png"]
    path = written(
        tmp_path,
        *(
            json.dumps({"image": image, "question": "W?", "split": splits.get(image, "test")})
            for image in asked
        ),
    )
    seen: list[tuple[int, int]] = []
    check = check_pictures(read_dataset(path).rows, lambda *done: seen.append(done))
    reasons = {str(p.place).removeprefix(f"{path}, "): p.reason for p in check.problems}
    assert sorted(reasons) == ["line 2", "line 3", "line 7"]
    assert reasons["line 2"] == reasons["line 7"]
    assert reasons["line 2"].startswith(f"{tmp_path / 'cut.png'}: The image cannot be decoded")
    assert reasons["line 3"].startswith(f"the picture {tmp_path / 'absent'} is not there")
    (warning,) = check.warnings
    assert "good.png (train)" in warning and "twin.png (test)" in warning
    assert seen == [(done, 5) for done in range(1, 6)]


def test_the_worlds_give_pictures_that_the_model_has_not_seen() -> None:
    rows = list(world_rows(2, shifted=1))
    assert rows == list(world_rows(2, shifted=1))
    assert rows != list(world_rows(2, shifted=1, seed=1))
    assert {row.split for row in rows if row.image.startswith("shifted")} == {"shifted"}
    assert not any(row.image.startswith("train") for row in rows)
    assert len({row.sample for row in rows}) == len(rows)
    assert all(row.answers and row.read_picture().startswith(b"\x89PNG") for row in rows)
    assert len(list(world_rows(2, questions=1))) == 2
