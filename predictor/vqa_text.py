"""The normalisation of answers in the VQA evaluation, rule for rule.

From `vqaEval.py` of Antol et al. (VQA, ICCV 2015; github.com/GT-Vision-Lab/VQA), odd rules
included: figures are only comparable if everybody's answers went through the same ones.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}

# Each of these is restored where one of its apostrophes is missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's i'd've isn't it'd it'd've it'll ma'am mightn't
mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_RESTORED = {
    shortened: word for word in _CONTRACTIONS for shortened in _without_one_apostrophe(word)
} | {"somebody'd": "somebodyd"}


def normalised_answer(answer: str) -> str:
    """The form in which the VQA evaluation compares answers."""
    return _words(_without_punctuation(" ".join(answer.split())))


def _without_punctuation(text: str) -> str:
    """A mark beside a space vanishes, one between letters becomes a space; "1,000" is "1000"."""
    number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or number else " ")
    return _FULL_STOP.sub("", stripped)


def _words(text: str) -> str:
    numbered = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in numbered if word not in _ARTICLES)
