"""How each kind of question can be asked: fixed and composed ways that are trained on, two that
never are; in training also as people type in a hurry.
"""

from __future__ import annotations

from random import Random

from m3_backend.training.worlds.composed import composed

_SEEN: dict[str, tuple[str, ...]] = {
    "background": (
        "what colour is the background?",
        "what is the background colour?",
        "name the colour of the background.",
        "which colour fills the background?",
        "tell me the background colour.",
        "the background is which colour?",
        "what colour is behind everything?",
        "background colour?",
    ),
    "dominant_shape": (
        "what is the largest shape?",
        "which shape is the biggest?",
        "name the largest shape in the picture.",
        "what shape is the biggest object?",
        "which shape takes up the most space?",
        "tell me the shape of the largest object.",
        "what is the dominant shape?",
        "largest shape?",
    ),
    "dominant_colour": (
        "what colour is the largest object?",
        "which colour is the biggest shape?",
        "name the colour of the largest shape.",
        "what is the colour of the biggest object?",
        "the largest shape has which colour?",
        "tell me the colour of the biggest shape.",
        "what colour does the dominant shape have?",
        "colour of the largest shape?",
    ),
    "exists": (
        "is there a {colour} {shape}?",
        "is there a {colour} {shape} in the picture?",
        "does the picture show a {colour} {shape}?",
        "can you see a {colour} {shape}?",
        "do you see any {colour} {shape}?",
        "is a {colour} {shape} visible?",
        "does a {colour} {shape} appear here?",
        "any {colour} {shape}?",
    ),
    "exists_colour": (
        "is there a {colour} object?",
        "is there anything {colour} in the picture?",
        "does the picture show a {colour} shape?",
        "can you see a {colour} object?",
        "do you see any {colour} shape?",
        "is a {colour} object visible?",
        "does a {colour} shape appear here?",
        "any {colour} object?",
    ),
    "exists_shape": (
        "is there a {shape}?",
        "is there a {shape} in the picture?",
        "does the picture show a {shape}?",
        "can you see a {shape}?",
        "do you see any {shape}?",
        "is a {shape} visible?",
        "does a {shape} appear here?",
        "any {shape}?",
    ),
    "shape_of": (
        "what shape is the {colour} object?",
        "which shape is {colour}?",
        "name the shape of the {colour} object.",
        "the {colour} object is what shape?",
        "what is the shape of the {colour} thing?",
        "tell me the shape that is {colour}.",
        "what kind of shape is the {colour} one?",
        "shape of the {colour} object?",
    ),
    "colour_of": (
        "what colour is the {shape}?",
        "which colour is the {shape}?",
        "name the colour of the {shape}.",
        "the {shape} has which colour?",
        "what is the colour of the {shape}?",
        "tell me the colour of the {shape}.",
        "in which colour is the {shape} drawn?",
        "colour of the {shape}?",
    ),
    "count_all": (
        "how many objects are there?",
        "how many shapes are in the picture?",
        "count the objects.",
        "what is the number of objects?",
        "how many things do you see?",
        "give the number of shapes.",
        "count all shapes in the picture.",
        "number of objects?",
    ),
    "count_some": (
        "how many {what} objects are there?",
        "how many {what} shapes are in the picture?",
        "count the {what} objects.",
        "what is the number of {what} shapes?",
        "how many {what} things do you see?",
        "give the number of {what} objects.",
        "count all {what} shapes in the picture.",
        "number of {what} objects?",
    ),
    "count_these": (
        "how many {what} are there?",
        "how many {what} are in the picture?",
        "count the {what}.",
        "what is the number of {what}?",
        "how many {what} do you see?",
        "give the number of {what}.",
        "count all {what} in the picture.",
        "number of {what}?",
    ),
    "relation": (
        "is the {a} {relation} the {b}?",
        "is the {a} placed {relation} the {b}?",
        "does the {a} lie {relation} the {b}?",
        "would you say the {a} is {relation} the {b}?",
        "can the {a} be found {relation} the {b}?",
        "is it true that the {a} is {relation} the {b}?",
        "do you see the {a} {relation} the {b}?",
        "{a} {relation} the {b}?",
    ),
    "where": (
        "where is the {a}?",
        "in which corner is the {a}?",
        "in which part of the picture is the {a}?",
        "which quarter of the picture holds the {a}?",
        "tell me where the {a} is.",
        "where do you see the {a}?",
        "what is the place of the {a}?",
        "position of the {a}?",
    ),
    "handwritten": (
        "which number is written by hand?",
        "what is the handwritten number?",
        "read the handwritten digits.",
        "what number did someone write?",
        "which handwritten digits do you see?",
        "tell me the number written by hand.",
        "what do the handwritten digits say?",
        "handwritten number?",
    ),
    "read_text": (
        "what does the text say?",
        "read the text.",
        "what is written here?",
        "which text is printed in the picture?",
        "what do the letters say?",
        "tell me what the text says.",
        "please read what is printed.",
        "printed text?",
    ),
    "read_coloured": (
        "what does the {colour} text say?",
        "read the {colour} text.",
        "what is written in {colour}?",
        "which text is printed in {colour}?",
        "what do the {colour} letters say?",
        "tell me what the {colour} text says.",
        "please read what is printed in {colour}.",
        "{colour} text?",
    ),
    "text_colour": (
        "what colour is the text?",
        "which colour are the letters?",
        "name the colour of the text.",
        "in which colour is the text printed?",
        "what is the text colour?",
        "tell me the colour of the letters.",
        "the text has which colour?",
        "text colour?",
    ),
    "document_kind": (
        "what kind of document is this?",
        "which type of document is shown?",
        "is this a receipt, a form or a table?",
        "name the kind of document.",
        "what sort of paper is this?",
        "tell me the type of this document.",
        "this document is a what?",
        "document type?",
    ),
    "total": (
        "what is the total?",
        "how much is the total?",
        "read the total of the receipt.",
        "what does everything cost together?",
        "which amount is the total?",
        "tell me the total amount.",
        "what is the sum at the bottom?",
        "total?",
    ),
    "price": (
        "how much is the {item}?",
        "what does the {item} cost?",
        "what is the price of the {item}?",
        "read the price of the {item}.",
        "which price is next to {item}?",
        "tell me the price of the {item}.",
        "for how much was the {item} sold?",
        "price of {item}?",
    ),
    "field": (
        "what is the {field}?",
        "what is written as the {field}?",
        "read the {field} on the form.",
        "which {field} is given?",
        "what does the {field} line say?",
        "tell me the {field}.",
        "what was filled in for {field}?",
        "{field}?",
    ),
    "cell": (
        "what is in row {row}, column {column}?",
        "read the cell in row {row} and column {column}.",
        "which number is in column {column} of row {row}?",
        "what does row {row} say in column {column}?",
        "tell me the value at row {row}, column {column}.",
        "what is the number in row {row}, column {column}?",
        "look up column {column} in row {row}.",
        "row {row}, column {column}?",
    ),
    "chart_kind": (
        "what kind of chart is this?",
        "which type of chart is shown?",
        "is this a bar, line or pie chart?",
        "name the kind of chart.",
        "what sort of chart do you see?",
        "tell me the type of this chart.",
        "this chart is of which type?",
        "chart type?",
    ),
    "largest_part": (
        "which {part} is the largest?",
        "what colour is the largest {part}?",
        "name the colour of the biggest {part}.",
        "which colour has the highest value?",
        "the largest {part} has which colour?",
        "tell me which {part} is the biggest.",
        "which {part} stands for the most?",
        "largest {part}?",
    ),
    "smallest_part": (
        "which {part} is the smallest?",
        "what colour is the smallest {part}?",
        "name the colour of the smallest {part}.",
        "which colour has the lowest value?",
        "the smallest {part} has which colour?",
        "tell me which {part} is the smallest.",
        "which {part} stands for the least?",
        "smallest {part}?",
    ),
    "count_parts": (
        "how many {part}s are there?",
        "how many {part}s does the chart have?",
        "count the {part}s.",
        "what is the number of {part}s?",
        "how many {part}s do you see?",
        "give the number of {part}s in the chart.",
        "count all {part}s of the chart.",
        "number of {part}s?",
    ),
    "bar_value": (
        "what is the value of the {colour} bar?",
        "how high is the {colour} bar?",
        "read the value of the {colour} bar.",
        "which value does the {colour} bar reach?",
        "what number does the {colour} bar show?",
        "tell me the value of the {colour} bar.",
        "up to which value goes the {colour} bar?",
        "value of the {colour} bar?",
    ),
    "taller": (
        "is the {a} bar taller than the {b} bar?",
        "is the {a} bar higher than the {b} one?",
        "does the {a} bar exceed the {b} bar?",
        "has the {a} bar a greater value than the {b} bar?",
        "is {a} more than {b}?",
        "does {a} show a larger value than {b}?",
        "would you say the {a} bar is above the {b} bar?",
        "{a} bar taller than {b} bar?",
    ),
    "trend": (
        "does the {colour} line go up or down?",
        "is the {colour} line going up or down?",
        "which way does the {colour} line run?",
        "what is the trend of the {colour} line?",
        "does {colour} go up or down over time?",
        "tell me whether the {colour} line goes up or down.",
        "from left to right, where does the {colour} line go?",
        "{colour} line up or down?",
    ),
    "photo": (
        "what is in the photo?",
        "what does the photo show?",
        "name the main thing in the photo.",
        "what do you see in this photograph?",
        "which thing was photographed?",
        "tell me what this is a photo of.",
        "what is the subject of the photo?",
        "photo of what?",
    ),
}

_HELD_OUT: dict[str, tuple[str, str]] = {
    "background": (
        "which colour does the background have?",
        "say the colour that is behind the objects.",
    ),
    "dominant_shape": ("what shape is the largest one?", "which is the biggest shape here?"),
    "dominant_colour": (
        "which colour has the largest object?",
        "say the colour of the biggest one.",
    ),
    "exists": (
        "do you find a {colour} {shape}?",
        "in this picture, is there any {colour} {shape}?",
    ),
    "exists_colour": (
        "do you find a {colour} object?",
        "in this picture, is there any {colour} shape?",
    ),
    "exists_shape": ("do you find a {shape}?", "in this picture, is there any {shape}?"),
    "shape_of": ("which shape has the {colour} object?", "say what shape the {colour} thing is."),
    "colour_of": ("the {shape} is what colour?", "say which colour the {shape} has."),
    "count_all": ("how many objects do you see?", "say how many shapes there are."),
    "count_some": ("how many of the objects are {what}?", "say how many {what} shapes there are."),
    "count_these": ("how many of the objects are {what}?", "say how many {what} there are."),
    "relation": (
        "do you find the {a} {relation} the {b}?",
        "in this picture, is the {a} {relation} the {b}?",
    ),
    "where": ("which part of the picture has the {a}?", "say where the {a} is placed."),
    "handwritten": ("what is the number written by hand?", "say which digits are handwritten."),
    "read_text": ("which letters are printed here?", "say what is written in the picture."),
    "read_coloured": ("which letters are printed in {colour}?", "say what is written in {colour}."),
    "text_colour": ("which colour does the text have?", "say the colour of the text."),
    "document_kind": ("what type of document do you see?", "say which kind of paper this is."),
    "total": ("what is the total of the receipt?", "say how much everything is together."),
    "price": ("what is the cost of the {item}?", "say how much the {item} is."),
    "field": ("what does the form say for {field}?", "say which {field} was filled in."),
    "cell": (
        "which value is in row {row}, column {column}?",
        "say the number at row {row}, column {column}.",
    ),
    "chart_kind": ("what type of chart do you see?", "say which kind of chart this is."),
    "largest_part": ("what is the largest {part}?", "say which {part} is the biggest."),
    "smallest_part": ("what is the smallest {part}?", "say which {part} is the least."),
    "count_parts": ("how many {part}s are in the chart?", "say how many {part}s there are."),
    "bar_value": (
        "which number is the value of the {colour} bar?",
        "say how high the {colour} bar is.",
    ),
    "taller": ("is the {a} bar the taller one than the {b} bar?", "do you see more {a} than {b}?"),
    "trend": (
        "where does the {colour} line go, up or down?",
        "say if the {colour} line is going up or down.",
    ),
    "photo": ("which thing do you see in the photo?", "say what the photo shows."),
}

KINDS = tuple(_SEEN)
_COMPOSED = {kind: composed(kind) for kind in KINDS}


# Left out or put in front, these change no question: what is asked for is in the other words.
_SMALL = frozenset(
    "the a is are of in there do does you me this that it what which can please tell to".split()
)
_IN_FRONT = ("please", "now", "hello,", "here,", "look,", "so", "and", "well,", "for this image,")
_HURRIED = 0.3


def phrase(kind: str, rng: Random, held_out: bool, hurried: bool = False, /, **words: str) -> str:
    """One way of asking a question of `kind`, with `words` filled in, as people spell and type.

    Args:
        hurried: a share of the questions lacks small words or begins with some too many.
    """
    fixed = _HELD_OUT[kind] if held_out else _SEEN[kind]
    choices = _COMPOSED[kind] if not held_out and rng.random() < 0.5 else fixed
    template = rng.choice(choices)
    if hurried and rng.random() < _HURRIED:
        template = _hurried(template, rng)
    text = template.format(**words)
    if rng.random() < 0.3:
        text = text.replace("colour", "color")
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text


def _hurried(template: str, rng: Random) -> str:
    words = [w for w in template.split() if w not in _SMALL or rng.random() < 0.6]
    front = [rng.choice(_IN_FRONT)] if rng.random() < 0.4 else []
    return " ".join(front + (words or template.split()))


def all_phrasings() -> tuple[str, ...]:
    """Every template that is trained on, for fitting the tokenizer."""
    return tuple(t for kind in KINDS for t in (*_SEEN[kind], *_COMPOSED[kind]))


def held_out_phrasings() -> tuple[str, ...]:
    """Every template that is never trained on."""
    return tuple(template for templates in _HELD_OUT.values() for template in templates)
