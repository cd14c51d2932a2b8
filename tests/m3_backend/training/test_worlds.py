"""The worlds: reproducible, varied, and telling the truth about what they drew."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

from m3_backend.training.worlds import Picture, draw, lettering, phrasings
from m3_backend.training.worlds.canvas import (
    CLASSES,
    COLOUR,
    MOST_COLUMNS,
    MOST_ORDER,
    NO_COLOUR,
    ROWS,
    SHAPES,
    Canvas,
)
from m3_backend.training.worlds.palette import COLOURS, readable_on

PICTURES = 250


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw("test", index) for index in range(PICTURES)]


def test_the_same_arguments_draw_the_same_picture() -> None:
    for index in range(12):
        first, second = draw("test", index), draw("test", index)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.questions == second.questions


def test_splits_and_seeds_share_no_picture() -> None:
    drawn = {
        draw(split, i, seed=seed).image.tobytes()
        for split in ("train", "test")
        for seed in (0, 1)
        for i in range(10)
    }
    assert len(drawn) == 40


def test_there_are_ten_families_and_several_questions_per_picture(pictures: list[Picture]) -> None:
    families = Counter(q.family for p in pictures for q in p.questions)
    assert len(families) >= 10
    assert all(p.questions for p in pictures)
    assert np.mean([len(p.questions) for p in pictures]) > 2


def test_detail_varies_inside_families(pictures: list[Picture]) -> None:
    sizes = defaultdict(list)
    for picture in pictures:
        for question in picture.questions:
            sizes[question.family].append(question.detail_px)
    for family in ("words", "numbers", "handwriting", "counting", "existence", "documents"):
        assert max(sizes[family]) > 2.5 * min(sizes[family]), family


def test_labels_match_the_picture_in_size_and_range(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert picture.image.size == (336, 336)
        labels = picture.labels
        bounds = (
            (labels.classes, len(CLASSES) - 1),
            (labels.colours, NO_COLOUR),
            (labels.orders, MOST_ORDER),
            (labels.rows, len(ROWS) - 1),
            (labels.columns, MOST_COLUMNS),
        )
        for label, largest in bounds:
            assert label.shape == (336, 336)
            assert label.max() <= largest


def test_the_background_answer_is_the_colour_of_most_unmarked_pixels(
    pictures: list[Picture],
) -> None:
    checked = 0
    for picture in pictures:
        ground = [q.answer for q in picture.questions if q.family == "background"]
        nothing = picture.labels.classes == 0
        if ground and nothing.sum() > 5000:
            colour = np.asarray(picture.image)[nothing].mean(axis=0)
            nearest = min(COLOURS, key=lambda name: float(np.abs(colour - COLOURS[name]).sum()))
            assert nearest == ground[0]
            checked += 1
    assert checked > 30


def test_a_total_is_at_least_every_price_on_the_receipt(pictures: list[Picture]) -> None:
    receipts = [p for p in pictures if any(q.answer == "receipt" for q in p.questions)]
    assert receipts
    for picture in receipts:
        amounts = [
            float(q.answer) for q in picture.questions if re.fullmatch(r"\d+\.\d\d", q.answer)
        ]
        assert amounts[0] >= max(amounts)


def test_counting_all_is_never_less_than_counting_some(pictures: list[Picture]) -> None:
    counted = [[int(q.answer) for q in p.questions if q.family == "counting"] for p in pictures]
    pairs = [pair for pair in counted if len(pair) == 2]
    assert pairs
    assert all(everything >= some >= 1 for everything, some in pairs)


def _as_templates_spell(
    kind: str, number: int, held_out: bool, words: dict[str, str], hurried: bool = False
) -> str:
    text = phrasings.phrase(kind, Random(number), held_out, hurried, **words)
    return text.lower().replace("color", "colour")


def test_questions_come_in_the_spellings_people_use() -> None:
    texts = {phrasings.phrase("background", Random(i), False) for i in range(100)}
    assert any("color" in text for text in texts) and any("colour" in text for text in texts)
    assert any(text[0].isupper() for text in texts) and any(text[0].islower() for text in texts)


@pytest.mark.parametrize("kind", phrasings.KINDS)
def test_held_out_phrasings_are_never_trained_on(kind: str) -> None:
    words = {w: w for w in "colour shape what a b relation item field row column part".split()}
    seen = {_as_templates_spell(kind, i, False, words) for i in range(400)}
    held_out = {_as_templates_spell(kind, i, True, words) for i in range(100)}
    assert len(seen) > 20
    assert len(held_out) == 2
    assert not seen & held_out
    hurried = {_as_templates_spell(kind, i, False, words, hurried=True) for i in range(1000)}
    assert len(hurried) > 2 * len(seen)
    assert not hurried & held_out


def test_only_training_asks_in_a_hurry() -> None:
    assert not any("hello" in template for template in phrasings.all_phrasings())

    def greeted(split: str) -> int:
        texts = [q.text for i in range(150) for q in draw(split, i, side=168).questions]
        return sum(text.lower().startswith("hello,") for text in texts)

    assert greeted("train") > 0
    assert greeted("test") == 0


@pytest.mark.parametrize("kind", phrasings.KINDS)
def test_a_hurry_drops_no_word_that_is_asked_about(kind: str) -> None:
    words = {w: f"{w}-word" for w in "colour shape what a b relation item field row part".split()}
    words["column"] = "column-word"
    careful = phrasings.all_phrasings()
    asked = {word for t in careful for word in re.findall(r"{(\w+)}", t)}
    assert asked <= words.keys()
    for number in range(300):
        text = phrasings.phrase(kind, Random(number), False, True, **words)
        assert "{" not in text and text.strip()


def test_no_template_of_training_is_held_out_from_another_kind() -> None:
    assert not set(phrasings.all_phrasings()) & set(phrasings.held_out_phrasings())


def test_training_asks_more_about_a_picture_than_an_examination() -> None:
    asked = [len(draw("train", i).questions) for i in range(40)]
    examined = [len(draw("test", i).questions) for i in range(40)]
    assert np.mean(asked) > 1.5 * np.mean(examined)


def test_a_value_in_a_receipt_is_labelled_with_its_row_and_its_glyphs_with_their_order() -> None:
    receipt = next(
        p
        for p in (draw("test", i, mix={"receipt": 1.0}) for i in range(20))
        if any("total" in q.text for q in p.questions)
    )
    total = receipt.labels.rows == ROWS.index("total")
    amount = receipt.questions[0].answer
    glyphs = {
        (int(order), CLASSES[int(what)])
        for order, what in zip(
            receipt.labels.orders[total], receipt.labels.classes[total], strict=True
        )
    }
    expected = {(n, f"printed {c}") for n, c in enumerate(amount, start=1)}
    assert expected <= glyphs


def test_every_shape_has_one_middle() -> None:
    canvas = Canvas(336, "white", Random(0))
    for x in (20, 120, 220):
        canvas.shape("ring", x, 100, 80, "red")
    marked = canvas.labels().orders[140].astype(int)
    assert (np.diff(marked) == 1).sum() == 3


def test_shifted_pictures_differ_in_one_named_way() -> None:
    shifts = Counter(draw("shifted", index).shift for index in range(60))
    assert set(shifts) == {"phrasing", "font", "palette", "density"}
    assert not set(lettering.FONTS) & set(lettering.SHIFTED_FONTS)


@pytest.mark.parametrize("height", [8, 14, 40, 120])
@pytest.mark.parametrize("font", lettering.FONTS + lettering.SHIFTED_FONTS)
def test_capitals_are_as_high_as_asked_for(font: str, height: int) -> None:
    canvas = Canvas(336, "white", Random(0))
    canvas.text(100, 100, "H", font, height, "black")
    dark = np.asarray(canvas.image).mean(axis=2) < 128
    rows = np.flatnonzero(dark.any(axis=1))
    assert abs((rows[-1] - rows[0] + 1) - height) <= max(1, 0.06 * height)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box_and_stays_inside(shape: str) -> None:
    canvas = Canvas(336, "white", Random(0))
    canvas.shape(shape, 100, 80, 120, readable_on("white")[0])
    classes = canvas.labels().classes
    rows, columns = np.nonzero(classes)
    assert set(np.unique(classes)) == {0, CLASSES.index(shape)}
    assert abs(rows.min() - 80) <= 12
    assert abs(rows.max() - 200) <= 12
    assert abs(columns.min() - 100) <= 6
    assert abs(columns.max() - 220) <= 6


def test_what_is_asked_for_is_there_exactly_when_the_answer_says_so() -> None:
    checked: Counter[tuple[int, str]] = Counter()
    for picture in (draw("test", i, mix={"shapes": 1.0}) for i in range(120)):
        labels = picture.labels
        for question in (q for q in picture.questions if q.family == "existence"):
            words = re.findall(r"\w+", question.text.lower())
            shown = np.isin(labels.classes, [CLASSES.index(shape) for shape in SHAPES])
            named = 0
            for word in words:
                if word in SHAPES:
                    shown &= labels.classes == CLASSES.index(word)
                    named += 1
                elif word in COLOUR:
                    shown &= labels.colours == COLOUR[word]
                    named += 1
            assert shown.any() == (question.answer == "yes"), (picture.name, question)
            checked[named, question.answer] += 1
    assert len(checked) == 4
    assert min(checked.values()) > 5
