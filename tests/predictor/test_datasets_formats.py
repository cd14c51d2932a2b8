"""Small files of exactly the shapes that are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from predictor.datasets import FORMATS, Dataset, Row, read_dataset
from predictor.errors import OutcomesError
from predictor.records import assign_split

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, content: Any, *pictures: str) -> Path:
        for picture in pictures:
            path = tmp_path / "images" / picture
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def read(path: Path, name: str, **options: Any) -> list[Row]:
    """All rows; told by content and by name alike."""
    options = {"images": path.parent / "images"} | options
    detected, named = read_dataset(path, **options), read_dataset(path, format=name, **options)
    assert detected == named
    assert (detected.format, detected.problems) == (name, ())
    assert all(row.split == assign_split(row.image) for row in detected.rows)
    return list(detected.rows)


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_textvqa(written: Written) -> None:
    ten = ["nokia"] * 8 + ["toshiba", "unanswerable"]
    common = {"image_classes": ["Mobile phone"], "set_name": "val", "image_width": 1024}
    path = written(
        "TextVQA_0.5.1_val.json",
        {
            "dataset_type": "val",
            "dataset_name": "textvqa",
            "dataset_version": "0.5.1",
            "data": [
                common
                | {
                    "question": "what is the brand of this camera?",
                    "image_id": "003a8ae2ef43b901",
                    "question_id": 34602,
                    "answers": ten,
                },
                common
                | {"question": "what year?", "image_id": "0054c91397f2fe05", "question_id": 34603},
            ],
        },
        "003a8ae2ef43b901.jpg",
        "0054c91397f2fe05.png",
    )
    first, second = read(path, "textvqa")
    assert (first.image, first.sample, first.metric) == ("003a8ae2ef43b901.jpg", "34602", "vqa")
    assert first.answers == tuple(ten)
    assert first.read_picture()
    assert (second.image, second.answers) == ("0054c91397f2fe05.png", ())
    assert second.place == f"{path}, record 2"


def test_docvqa(written: Written) -> None:
    path = written(
        "val_v1.0_withQT.json",
        {
            "dataset_name": "SP-DocVQA",
            "dataset_split": "val",
            "data": [
                {
                    "questionId": 49153,
                    "question": "What is the ‘actual’ value per 1000?",
                    "question_types": ["figure/diagram", "form"],
                    "image": "documents/pybv0228_81.png",
                    "docId": 14465,
                    "ucsf_document_id": "pybv0228",
                    "ucsf_document_page_no": "81",
                    "answers": ["0.28"],
                    "data_split": "val",
                }
            ],
        },
        "documents/pybv0228_81.png",
    )
    (row,) = read(path, "docvqa")
    assert (row.image, row.sample, row.metric) == ("documents/pybv0228_81.png", "49153", "anls")
    assert (row.answers, row.group) == (("0.28",), "figure/diagram")
    (inside,) = read(path, "docvqa", images=path.parent / "images" / "documents")
    assert inside.image == "pybv0228_81.png"  # the folder may be the pictures' own


def test_chartqa(written: Written) -> None:
    records = [
        {"imgname": "41699051005347.png", "query": "How many food items?", "label": "14"},
        {"imgname": "41699051005347.png", "query": "Which is largest?", "label": ["Lamb"]},
    ]
    path = written("test_human.json", records, "png/41699051005347.png")
    first, second = read(path, "chartqa")
    assert (first.image, first.group) == ("png/41699051005347.png", "human")
    assert (first.metric, first.answers, second.answers) == ("relaxed", ("14",), ("Lamb",))
    assert first.sample != second.sample
    (augmented, _) = read(written("val_augmented.json", records), "chartqa")
    assert augmented.group == "augmented"


def test_vqav2(written: Written) -> None:
    path = written(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        {
            "info": {"version": "2.0"},
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "license": {"name": "CC BY 4.0"},
            "data_subtype": "val2014",
            "questions": [
                {"image_id": 42, "question": "What color are the gym shoes?", "question_id": 42000},
                {"image_id": 42, "question": "Is there a red sandal?", "question_id": 42001},
            ],
        },
        "val2014/COCO_val2014_000000000042.jpg",
    )
    people = ["white", "white", "white and black", "gray"]
    annotations = written(
        "v2_mscoco_val2014_annotations.json",
        {
            "data_subtype": "val2014",
            "annotations": [
                {
                    "question_type": "what color are the",
                    "multiple_choice_answer": "white",
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                        for number, answer in enumerate(people, start=1)
                    ],
                    "image_id": 42,
                    "answer_type": "other",
                    "question_id": 42000,
                }
            ],
        },
    )
    unanswered = read(path, "vqav2")
    assert [row.answers for row in unanswered] == [(), ()]
    assert unanswered[0].image == "val2014/COCO_val2014_000000000042.jpg"

    dataset = read_dataset(path, images=path.parent / "images", annotations=annotations)
    (row,) = dataset.rows
    assert (row.answers, row.group, row.metric) == (tuple(people), "other", "vqa")
    assert [str(problem) for problem in dataset.problems] == [
        f"{path}, record 2: question 42001 is not among the annotations."
    ]
    with pytest.raises(OutcomesError, match="no file of annotations"):
        read_dataset(path, annotations=path)
    with pytest.raises(OutcomesError, match="only 'vqav2'"):
        read_dataset(annotations, format="textvqa", annotations=annotations)


def test_pope(written: Written) -> None:
    record = {
        "question_id": 1,
        "image": "COCO_val2014_000000310196.jpg",
        "text": "Is there a snowboard in the image?",
        "label": "yes",
    }
    path = written(
        "coco_pope_adversarial.json",
        lines(record, record | {"question_id": 2, "label": "no"}),
        record["image"],
    )
    first, second = read(path, "pope")
    assert (first.sample, first.group, first.metric) == ("1", "adversarial", "exact")
    assert (first.question, first.answers) == (record["text"], ("yes",))
    assert second.answers == ("no",)
    assert second.place == f"{path}, line 2"


def test_llava_questions(written: Written) -> None:
    path = written(
        "llava_questions.jsonl",
        lines(
            {"question_id": 0, "image": "001.jpg", "text": "What is it?", "category": "conv"},
            {"question_id": 1, "image": "002", "text": "Describe it."},
        ),
        "001.jpg",
        "002.webp",
    )
    first, second = read(path, "llava-questions")
    assert (first.sample, first.group, first.answers) == ("0", "conv", ())
    assert (second.image, second.group) == ("002.webp", "all")


def test_llava_conversations(written: Written) -> None:
    path = written(
        "llava_v1_5_mix665k.json",
        [
            {
                "id": "000000033471",
                "image": "coco/train2017/000000033471.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat colours is the bus?"},
                    {"from": "gpt", "value": "White and red."},
                    {"from": "human", "value": "What is on its back?\n<image>"},
                    {"from": "gpt", "value": "An advertisement."},
                    {"from": "human", "value": "And now?"},
                ],
            }
        ],
        "coco/train2017/000000033471.jpg",
    )
    rows = read(path, "llava-conversations")
    assert [(row.sample, row.question, row.answers) for row in rows] == [
        ("000000033471-0", "What colours is the bus?", ("White and red.",)),
        ("000000033471-1", "What is on its back?", ("An advertisement.",)),
        ("000000033471-2", "And now?", ()),
    ]


def test_csv(written: Written) -> None:
    path = written(
        "mine.csv",
        "image,question,answers,group,split,metric,sample,note\n"
        'a.png,"What, then?",red|crimson,colour,test,anls,s1,\n'
        "b,Why?,,,,,,unused\n"
        'a.png,"How\nmany?",3,,test,,,\n',
        "a.png",
        "b.jpeg",
    )
    dataset = read_dataset(path, images=path.parent / "images")
    assert (dataset.format, dataset.problems) == ("csv", ())
    first, second, third = dataset.rows
    assert (first.question, first.answers) == ("What, then?", ("red", "crimson"))
    assert (first.sample, first.group, first.split, first.metric) == (
        *("s1", "colour", "test", "anls"),
    )
    assert (second.question, second.place) == ("How\nmany?", f"{path}, line 5")
    assert (third.image, third.answers, third.group) == ("b.jpeg", (), "all")
    assert third.split == assign_split("b.jpeg")

    tabs = written("mine.tsv", "question\timage\tanswer\nWhat?\ta.png\tred|blue\n")
    (row,) = read_dataset(tabs).rows
    assert row.answers == ("red|blue",)  # one answer, as the column's name says


def test_only_line_feeds_end_a_line_of_csv(written: Written) -> None:
    path = written(
        "odd.csv", "image,question,answer\na.png,What\u2028is\x0cthis?,re\x85d\nb,Why?,\n"
    )
    dataset = read_dataset(path)
    assert not dataset.problems
    first, second = dataset.rows
    assert (first.question, first.answers) == ("What\u2028is\x0cthis?", ("re\x85d",))
    assert second.place == f"{path}, line 3"


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("textvqa", {"image_id": 7, "question": "W?"}, "'image_id' must be a text"),
        ("docvqa", {"questionId": 1, "question": "W?"}, "'image_local_name' must be"),
        ("chartqa", {"imgname": "a.png", "query": " "}, "'query' must be"),
        ("chartqa", {"imgname": "a", "query": "W?", "label": [{"x": 1}]}, "neither text nor"),
        ("vqav2", {"image_id": "7", "question": "W?"}, "'image_id' must be a number"),
        ("pope", {"image": "a.png", "text": "W?", "label": True}, "neither text nor number"),
        ("llava-questions", {"image": "a.png"}, "'text' must be"),
        ("llava-conversations", {"image": "a", "conversations": "no"}, "list of turns"),
        ("llava-conversations", {"image": "a", "conversations": []}, "no turn is from"),
        ("llava-conversations", {"id": "text only", "conversations": []}, "'image' must be"),
        (
            "llava-conversations",
            {"image": "a", "conversations": [{"from": "human", "value": "<image>\n"}]},
            "turn 1 asks nothing",
        ),
    ],
)
def test_a_broken_record_is_named(
    written: Written, name: str, record: dict[str, Any], message: str
) -> None:
    path = written("records.json", [record])
    (problem,) = read_dataset(path, format=name).problems
    assert problem.place == f"{path}, record 1"
    assert message in problem.reason


def test_a_file_of_no_format_lists_those_there_are(written: Written) -> None:
    with pytest.raises(OutcomesError) as refused:
        read_dataset(written("other.json", [{"picture": "a.png"}]))
    assert "'picture'" in str(refused.value)
    assert all(name in str(refused.value) for name in FORMATS)
    with pytest.raises(OutcomesError, match="neither one JSON document"):
        read_dataset(written("cut.json", '{"data": [\n{"question":'))
    with pytest.raises(OutcomesError, match="no column question"):
        read_dataset(written("other.csv", "image,prompt\na.png,What?\n"))
    with pytest.raises(OutcomesError, match="not CSV after line 1"):
        read_dataset(written("quotes.csv", 'image,question\na.png,"What?\n'))
    with pytest.raises(OutcomesError, match="UTF-8"):
        read_dataset(written("folder.txt", "").parent)


def test_an_empty_file_has_no_rows(written: Written) -> None:
    assert read_dataset(written("empty.jsonl", "")) == Dataset("jsonl", (), ())
