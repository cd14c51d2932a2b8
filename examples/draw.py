"""Draws the example pictures again: they are pictures of the worlds that m3-tiny never saw."""

from __future__ import annotations

import json
from pathlib import Path

from m3_backend.training.worlds import draw

FOLDER = Path(__file__).parent
SPLIT = "examples"
# File name, number in the split, questions asked, coarse to fine.
PICTURES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("bars", 18, ("name the kind of chart.", "which color has the highest value?")),
    ("bars-five", 19, ("Chart type?", "Which colour has the highest value?")),
    ("bars-two", 118, ("how many bars do you see?", "Which color has the lowest value?")),
    ("bars-seven", 33, ("Which bar stands for the most?", "What is the number of bars?")),
    ("zebra", 97, ("what is the background colour?", "please read what is printed.")),
    ("autumn", 76, ("what does the black text say?",)),
    ("number-purple", 87, ("what color is behind everything?", "which text is printed in purple?")),
    ("digit-small", 92, ("what is written here?",)),
    ("handwriting", 80, ("which number is written by hand?",)),
    ("temple", 88, ("photo of what?",)),
    ("shapes-black", 36, ("background colour?", "what kind of shape is the cyan one?")),
    ("shapes-green", 128, ("count the objects.", "What colour is behind everything?")),
    ("ring", 101, ("Is there a red ring?",)),
    ("sign-yellow", 53, ("What is the background colour?", "what is the text colour?")),
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
