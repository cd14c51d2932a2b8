"""Draws the example pictures again: they are pictures of the worlds that m3-tiny never saw."""

from __future__ import annotations

import json
from pathlib import Path

from m3_backend.training.worlds import draw

FOLDER = Path(__file__).parent
SPLIT = "examples"
# File name, number in the split, questions asked, coarse to fine.
PICTURES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("bread", 13, ("red text?", "please read what is printed in cyan.")),
    ("water", 4, ("What is the yellow text?", "Please read what is printed in red.")),
    (
        "garage",
        9,
        ("what colour is behind everything?", "i want to know what the orange text says."),
    ),
    ("number", 50, ("Tell me the color of the letters.", "i want to know what the text says.")),
    ("receipt", 7, ("could you give me the type of the document?", "tell me the total amount.")),
    ("receipt-long", 133, ("name the kind of document.", "Look what the total is.")),
    ("table", 69, ("What's the kind of paper?", "Look what row 2 has in column B.")),
    ("form", 38, ("Which type of document is shown?", "code?")),
    ("bars", 17, ("What colour is the largest bar?", "tell me the value of the yellow bar.")),
    ("pie", 75, ("name the colour of the biggest slice.",)),
    ("handwriting", 31, ("Look what number is written by hand.",)),
    (
        "temple",
        189,
        ("Could you give me the thing in the photo?", "the purple object is what shape?"),
    ),
    (
        "shapes",
        145,
        ("colour of the triangle?", "which quarter of the picture holds the grey cross?"),
    ),
    ("shapes-many", 128, ("What's the background's colour?", "find the count of all objects.")),
    (
        "heart",
        43,
        ("what colour is the largest object?", "state in which corner the orange heart is."),
    ),
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
