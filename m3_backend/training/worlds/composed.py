"""Ways of asking that are put together from parts: (opening) × (what is wanted).

Few fixed phrasings teach a small model the phrasings instead of the question. A question is named
by a noun phrase ("the total") or a clause ("how much the total is"); openings fit one of the two.
None of them opens with "say", which only held-out phrasings do.
"""

from __future__ import annotations

_BEFORE_NOUNS = (
    "what is {}?",
    "what's {}?",
    "give me {}.",
    "name {}.",
    "state {}.",
    "find {}.",
    "please give {}.",
    "i need {}.",
    "can you find {}?",
    "could you give me {}?",
    "report {}, please.",
    "look for {}.",
    "{}, please.",
    "show me {}.",
    "i would like {}.",
    "and {}?",
    "here, what is {}?",
    "let me have {}.",
    "answer with {}.",
    "the question is {}.",
)
_BEFORE_CLAUSES = (
    "tell me {}.",
    "can you tell me {}?",
    "could you see {}?",
    "i want to know {}.",
    "please tell me {}.",
    "do you know {}?",
    "find out {}.",
    "state {}.",
    "i wonder {}.",
    "look {}.",
    "check {}, please.",
    "write down {}.",
    "{}?",
    "answer {}.",
    "show me {}.",
    "let me know {}.",
    "the question is {}.",
    "i would like to know {}.",
    "now tell us {}.",
    "explain {}.",
)

_NOUNS: dict[str, tuple[str, ...]] = {
    "background": ("the background's colour", "the colour in the background"),
    "dominant_shape": ("the shape of the biggest thing", "the biggest shape in the picture"),
    "dominant_colour": ("the colour of the biggest thing", "the biggest object's colour"),
    "shape_of": ("the shape of the {colour} one", "the {colour} object's shape"),
    "colour_of": ("the {shape}'s colour", "the colour that the {shape} has"),
    "count_all": ("the count of all objects", "the number of things in the picture"),
    "count_some": ("the count of {what} objects", "the number of {what} things"),
    "count_these": ("the count of {what}", "the number of {what} in the picture"),
    "where": ("the place where the {a} is", "the corner with the {a}"),
    "handwritten": ("the handwritten digits", "the number in handwriting"),
    "read_text": ("the printed text", "the text in the picture"),
    "read_coloured": ("the {colour} text", "the text printed in {colour}"),
    "text_colour": ("the colour of the printed letters", "the text's colour"),
    "document_kind": ("the kind of paper", "the type of the document"),
    "total": ("the total on the receipt", "the sum of all prices"),
    "price": ("the price of {item}", "the amount next to {item}"),
    "field": ("the {field} on the form", "the value of the field {field}"),
    "cell": ("the entry in row {row}, column {column}", "the value in column {column}, row {row}"),
    "chart_kind": ("the kind of chart", "the type of the chart"),
    "largest_part": ("the biggest {part}", "the colour of the largest {part}"),
    "smallest_part": ("the least {part}", "the smallest {part}'s colour"),
    "count_parts": ("the count of {part}s", "the number of {part}s in the chart"),
    "bar_value": ("the {colour} bar's value", "the height of the {colour} bar"),
    "trend": ("the direction of the {colour} line", "the way the {colour} line goes"),
    "photo": ("the thing in the photo", "the main subject of the photograph"),
}
_CLAUSES: dict[str, tuple[str, ...]] = {
    "background": ("what colour the background is", "which colour is behind it all"),
    "dominant_shape": ("what shape the biggest object is", "which shape is the largest"),
    "dominant_colour": ("what colour the largest shape is", "which colour the biggest shape is"),
    "exists": ("whether there is a {colour} {shape}", "if the picture has a {colour} {shape}"),
    "exists_colour": (
        "whether there is a {colour} object",
        "if the picture has a {colour} shape",
    ),
    "exists_shape": ("whether there is a {shape}", "if the picture has a {shape}"),
    "shape_of": ("what shape the {colour} object is", "which shape is the {colour} one"),
    "colour_of": ("what colour the {shape} is", "in which colour the {shape} is"),
    "count_all": ("how many objects there are", "how many shapes are shown"),
    "count_some": ("how many {what} objects there are", "how many objects are {what}"),
    "count_these": ("how many {what} there are", "how many {what} are shown"),
    "relation": ("whether the {a} is {relation} the {b}", "if the {a} is {relation} the {b}"),
    "where": ("where the {a} is", "in which corner the {a} is"),
    "handwritten": ("what number is written by hand", "which digits somebody wrote"),
    "read_text": ("what the text says", "what is printed here"),
    "read_coloured": ("what the {colour} text says", "what is printed in {colour}"),
    "text_colour": ("what colour the text is", "in which colour the letters are"),
    "document_kind": ("what kind of document this is", "whether this is a receipt, form or table"),
    "total": ("what the total is", "how much it all costs together"),
    "price": ("how much the {item} costs", "what the price of the {item} is"),
    "field": ("what the {field} is", "which {field} is on the form"),
    "cell": ("what row {row} has in column {column}", "what is at row {row}, column {column}"),
    "chart_kind": ("what kind of chart this is", "which type of chart it is"),
    "largest_part": ("which {part} is the largest", "what colour the biggest {part} is"),
    "smallest_part": ("which {part} is the smallest", "what colour the smallest {part} is"),
    "count_parts": ("how many {part}s the chart has", "how many {part}s are shown"),
    "bar_value": ("how high the {colour} bar goes", "which value the {colour} bar has"),
    "taller": ("whether the {a} bar is taller than the {b} bar", "if {a} is higher than {b}"),
    "trend": ("whether the {colour} line goes up or down", "where the {colour} line is going"),
    "photo": ("what the photo shows", "what was photographed"),
}


def composed(kind: str) -> tuple[str, ...]:
    """Every template of a kind of question that its parts allow."""
    with_nouns = (o.format(n) for n in _NOUNS.get(kind, ()) for o in _BEFORE_NOUNS)
    with_clauses = (o.format(c) for c in _CLAUSES.get(kind, ()) for o in _BEFORE_CLAUSES)
    return (*with_nouns, *with_clauses)
