"""The shapes in which people have questions about pictures.

Every format is a pure function from one record of a file to the questions in it. Nothing here looks
for pictures or fills in what a file leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from predictor.metrics import Metric

Record = Mapping[str, Any]


class RecordError(ValueError):
    """A record that does not have the shape of its format; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One question, as its file has it.

    Args:
        images: names under which its picture may be found, most likely first.
        sample: the file's own name for the question, if it has one.
        split, metric: of this row alone, unchecked.
    """

    images: tuple[str, ...]
    question: str
    answers: tuple[str, ...] = ()
    sample: str | None = None
    group: str = "all"
    split: str | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What a record's file says beyond the record.

    Args:
        path: of the file; some data sets say in its name what is in it.
        header: the other members of the object that holds the records.
        annotations: by question id, of data sets that keep answers in a second file.
    """

    path: Path
    header: Record = field(default_factory=dict)
    annotations: Mapping[str, Record] | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """How to recognise and read one kind of file.

    Args:
        shape: for people, in one line.
        fits: told a record and the member of the file's object that holds it (empty without one).
        read: a record's questions. Raises RecordError.
        metric: the one customary for this data.
    """

    shape: str
    fits: Callable[[Record, str], bool]
    read: Callable[[Record, Source], list[Entry]]
    metric: Metric = "exact"


def own(record: Record, source: Source) -> list[Entry]:
    """The project's own: image, question and, if known, answer or answers, group, split, …"""
    one, several = record.get("answer"), record.get("answers")
    if several is not None and not isinstance(several, list):
        raise RecordError("'answers' must be a list.")
    return [
        Entry(
            images=(_text(record, "image"),),
            question=_text(record, "question"),
            answers=_answers(([] if one is None else [one]) if several is None else several),
            sample=_name(record.get("sample")),
            group=str(record.get("group") or "all"),
            split=_name(record.get("split")),
            metric=_name(record.get("metric")),
        )
    ]


def csv_row(record: Record, source: Source) -> list[Entry]:
    """A line of a CSV file with a header; empty cells count as missing."""
    cells = {name: cell for name, cell in record.items() if cell}
    if "answers" in cells:
        cells["answers"] = [answer for answer in cells["answers"].split("|") if answer.strip()]
    return own(cells, source)


def textvqa(record: Record, source: Source) -> list[Entry]:
    """TextVQA (Singh et al., CVPR 2019): TextVQA_0.5.1_*.json; ten answers, or none (test set)."""
    return [
        Entry(
            images=(_text(record, "image_id"),),
            question=_text(record, "question"),
            answers=_answers(record.get("answers")),
            sample=_name(record.get("question_id")),
        )
    ]


def docvqa(record: Record, source: Source) -> list[Entry]:
    """DocVQA (Mathew et al., WACV 2021) and InfographicVQA: *_v1.0.json, *_v1.0_withQT.json."""
    image = _text(record, "image" if "image" in record else "image_local_name")
    kinds = record.get("question_types")
    return [
        Entry(
            images=(image, Path(image).name),
            question=_text(record, "question"),
            answers=_answers(record.get("answers")),
            sample=_name(record.get("questionId")),
            group=str(kinds[0]) if isinstance(kinds, list) and kinds else "all",
        )
    ]


def chartqa(record: Record, source: Source) -> list[Entry]:
    """ChartQA (Masry et al., Findings of ACL 2022): test_human.json, test_augmented.json, …"""
    image = _text(record, "imgname")
    return [
        Entry(
            images=(image, f"png/{image}"),
            question=_text(record, "query"),
            answers=_answers(record.get("label")),
            group=_in_name(source.path, "human", "augmented") or "all",
        )
    ]


def vqav2(record: Record, source: Source) -> list[Entry]:
    """VQAv2 (Goyal et al., CVPR 2017): a file of questions and one of annotations."""
    number = record.get("image_id")
    if not isinstance(number, int):
        raise RecordError("'image_id' must be a number.")
    sample = _name(record.get("question_id"))
    annotation: Record = {}
    if source.annotations is not None:
        if sample is None or sample not in source.annotations:
            raise RecordError(f"question {sample} is not among the annotations.")
        annotation = source.annotations[sample]
    pictures = str(source.header.get("data_subtype", "val2014"))
    name = f"COCO_{pictures}_{number:012}.jpg"
    return [
        Entry(
            images=(name, f"{pictures}/{name}", f"{number:012}.jpg"),
            question=_text(record, "question"),
            answers=_answers(annotation.get("answers")),
            sample=sample,
            group=str(annotation.get("answer_type", "all")),
        )
    ]


def pope(record: Record, source: Source) -> list[Entry]:
    """POPE (Li et al., EMNLP 2023): coco_pope_random.json, … popular, … adversarial."""
    return [
        Entry(
            images=(_text(record, "image"),),
            question=_text(record, "text"),
            answers=_answers(record.get("label")),
            sample=_name(record.get("question_id")),
            group=_in_name(source.path, "random", "popular", "adversarial") or "all",
        )
    ]


def llava_questions(record: Record, source: Source) -> list[Entry]:
    """Questions as LLaVA's evaluation scripts read them; they carry no answers."""
    return [
        Entry(
            images=(_text(record, "image"),),
            question=_text(record, "text"),
            sample=_name(record.get("question_id")),
            group=str(record.get("category") or "all"),
        )
    ]


def llava_conversations(record: Record, source: Source) -> list[Entry]:
    """LLaVA's training data: every turn of a conversation, asked on its own."""
    image, name = _text(record, "image"), _name(record.get("id"))
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError("'conversations' must be a list of turns.")
    entries: list[Entry] = []
    for turn, reply in pairwise([*turns, {}]):
        if turn.get("from") != "human":
            continue
        question = _text(turn, "value").replace("<image>", "").strip()
        if not question:
            raise RecordError(f"turn {len(entries) + 1} asks nothing.")
        answered = reply.get("from") == "gpt"
        entries.append(
            Entry(
                images=(image,),
                question=question,
                answers=_answers(reply.get("value")) if answered else (),
                sample=None if name is None else f"{name}-{len(entries)}",
            )
        )
    if not entries:
        raise RecordError("no turn is from 'human'.")
    return entries


FORMATS: Mapping[str, Format] = {
    "vqav2": Format(
        '{"questions": [{"question_id", "image_id", "question"}]} with --annotations',
        lambda record, member: member == "questions",
        vqav2,
        "vqa",
    ),
    "textvqa": Format(
        '{"data": [{"question_id", "image_id", "question", "answers"}]}',
        lambda record, member: {"image_id", "question"} <= record.keys() and "image" not in record,
        textvqa,
        "vqa",
    ),
    "docvqa": Format(
        '{"data": [{"questionId", "image", "question", "answers"}]}',
        lambda record, member: "questionId" in record or member == "data",
        docvqa,
        "anls",
    ),
    "chartqa": Format(
        '[{"imgname", "query", "label"}]',
        lambda record, member: {"imgname", "query"} <= record.keys(),
        chartqa,
        "relaxed",
    ),
    "llava-conversations": Format(
        '[{"id", "image", "conversations": [{"from", "value"}]}]',
        lambda record, member: "conversations" in record,
        llava_conversations,
    ),
    "pope": Format(
        'lines of {"question_id", "image", "text", "label"}',
        lambda record, member: {"image", "text", "label"} <= record.keys(),
        pope,
    ),
    "llava-questions": Format(
        'lines of {"question_id", "image", "text", "category"}',
        lambda record, member: {"image", "text"} <= record.keys(),
        llava_questions,
    ),
    "jsonl": Format(
        'lines of {"image", "question", "answers", "group", "split", "metric", "sample"}',
        lambda record, member: {"image", "question"} <= record.keys(),
        own,
    ),
    "csv": Format(
        "columns image, question, answer or answers (a|b), group, split, metric, sample",
        lambda record, member: False,  # told from JSON by its first character
        csv_row,
    ),
}


def _text(record: Record, name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str) or not text.strip():
        raise RecordError(f"{name!r} must be a text that is not empty.")
    if "\0" in text:
        raise RecordError(f"{name!r} holds a NUL character.")
    return text


def _name(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _answers(given: object) -> tuple[str, ...]:
    """Texts, numbers or VQA's objects with a member `answer`; one, a list of them, or none."""
    listed = given if isinstance(given, list) else [] if given is None else [given]
    answers = [each.get("answer") if isinstance(each, dict) else each for each in listed]
    for answer in answers:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise RecordError(f"the answer {answer!r} is neither text nor number.")
    return tuple(map(str, answers))


def _in_name(path: Path, *words: str) -> str | None:
    return next((word for word in words if word in path.stem.lower()), None)
