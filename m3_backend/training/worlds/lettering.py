"""Fonts and words. The fonts are those that matplotlib ships: nothing to download."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

import matplotlib
from PIL import ImageFont

_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmtt10",
)
SHIFTED_FONTS = ("cmss10", "DejaVuSans-Oblique")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
GLYPHS = DIGITS + LETTERS + "."

WORDS = tuple(
    """
    STOP OPEN EXIT PARK HOTEL BANK CAFE SHOP TAXI POLICE SCHOOL MARKET BAKERY GARAGE MUSEUM
    STATION BRIDGE RIVER GARDEN FOREST ISLAND MOUNTAIN VALLEY HARBOR CASTLE CHURCH TOWER
    SQUARE STREET AVENUE NORTH SOUTH EAST WEST SUMMER WINTER SPRING AUTUMN MONDAY FRIDAY
    SUNDAY MORNING EVENING NIGHT SALE FREE FRESH QUICK BROWN JUMP LAZY ZEBRA TIGER HORSE
    EAGLE WHALE OTTER RABBIT MONKEY APPLE LEMON GRAPE MELON PEACH CHERRY BREAD BUTTER CHEESE
    SUGAR COFFEE WATER JUICE PIZZA PASTA SALAD SOUP TABLE CHAIR WINDOW DOOR KITCHEN MIRROR
    PILLOW BLANKET CAMERA RADIO PIANO GUITAR VIOLIN DRUM ROCKET PLANET GALAXY COMET ORBIT
    LASER ROBOT ENGINE WHEEL BRAKE CLUTCH PETROL DIESEL VOLT
    """.split()
)


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FOLDER / f"{name}.ttf"), size)


@lru_cache(maxsize=4096)
def font_of_height(name: str, glyph_height: int) -> ImageFont.FreeTypeFont:
    """The font at the size whose capital letters are `glyph_height` pixels high."""
    _, top, _, bottom = font(name, 100).getbbox("H")
    return font(name, max(5, round(100 * glyph_height / (bottom - top))))


@lru_cache(maxsize=65536)
def advance(name: str, size: int, char: str) -> float:
    return font(name, size).getlength(char)


def width_of(name: str, glyph_height: int, text: str) -> float:
    """Width in pixels when drawn glyph by glyph, without kerning."""
    size = int(font_of_height(name, glyph_height).size)
    return sum(advance(name, size, char) for char in text)


def word(rng: Random, longest: int) -> str:
    """A word from the list, which a glimpse may give away, or letters that must be read."""
    if rng.random() < 0.6:
        fitting = [w for w in WORDS if len(w) <= longest]
        if fitting:
            return rng.choice(fitting)
    length = rng.randint(1, min(4, longest))
    return "".join(rng.choice(LETTERS) for _ in range(length))


def number(rng: Random, longest: int) -> str:
    """One to four digits without a leading zero."""
    length = rng.randint(1, min(4, longest))
    return rng.choice("123456789") + "".join(rng.choice(DIGITS) for _ in range(length - 1))
