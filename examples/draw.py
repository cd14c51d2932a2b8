"""Draws the example pictures again: they are pictures of the worlds that m3-tiny never saw."""

from __future__ import annotations

import json
from pathlib import Path

from m3_backend.training.worlds import draw

FOLDER = Path(__file__).parent
SPLIT = "examples"
# File name, number in the split, questions asked, coarse to fine.
PICTURES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("bars", 18, ("which colour has the highest value?", "which colour has the lowest value?")),
    ("sign-blue", 9, ("name the colour of the background.", "the text has which colour?")),
    ("triangle", 42, ("what is the dominant shape?",)),
    ("square", 48, ("what is the dominant shape?",)),
    ("table", 60, ("which type of document is shown?",)),
    ("pie", 73, ("what sort of chart do you see?",)),
    ("shapes-white", 86, ("the background is which colour?",)),
    ("temple", 88, ("photo of what?", "tell me the colour of the letters.")),
    ("bars-narrow", 33, ("which type of chart is shown?", "which bar stands for the least?")),
    ("bars-five", 34, ("how many bars are there?",)),
    ("bars-two", 19, ("is red more than blue?", "which colour has the lowest value?")),
    ("shapes-black", 36, ("background colour?", "name the colour of the triangle.")),
    (
        "sign-orange",
        51,
        ("the background is which colour?", "in which colour is the text printed?"),
    ),
    ("sign-yellow", 53, ("the background is which colour?", "what is the text colour?")),
)


def main() -> None:
    with (FOLDER / "questions.jsonl").open("w", encoding="utf-8") as file:
        for name, number, questions in PICTURES:
            picture = draw(SPLIT, number)
            picture.image.save(FOLDER / f"{name}.png", optimize=True)
            answers = {q.text: q.answer for q in picture.questions}
            for question in questions:
                row = {"image": f"{name}.png", "question": question, "answer": answers[question]}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
