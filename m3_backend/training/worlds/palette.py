"""The colour names of the worlds and the tints that stand for them."""

from __future__ import annotations

from random import Random

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (215, 35, 35),
    "green": (35, 150, 55),
    "blue": (40, 75, 215),
    "yellow": (240, 215, 40),
    "purple": (130, 45, 165),
    "orange": (245, 135, 25),
    "pink": (245, 150, 190),
    "cyan": (60, 205, 215),
    "brown": (115, 70, 35),
    "grey": (135, 135, 135),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}

# Tints that are never trained on: the same names, seen in another light.
SHIFTED_COLOURS: dict[str, Rgb] = {
    "red": (175, 15, 45),
    "green": (80, 185, 95),
    "blue": (20, 45, 150),
    "yellow": (215, 195, 90),
    "purple": (165, 90, 200),
    "orange": (225, 115, 60),
    "pink": (235, 120, 165),
    "cyan": (100, 220, 205),
    "brown": (140, 95, 60),
    "grey": (165, 165, 165),
    "black": (35, 32, 40),
    "white": (232, 230, 222),
}

NAMES = tuple(COLOURS)

# Pairs that an average over a cell, or a person at a glance, would confuse: never ink on ground.
_CLOSE = frozenset(
    frozenset(pair)
    for pair in (
        ("brown", "black"),
        ("grey", "white"),
        ("pink", "white"),
        ("orange", "red"),
        ("orange", "yellow"),
        ("orange", "brown"),
        ("purple", "blue"),
        ("yellow", "white"),
        ("brown", "red"),
        ("cyan", "white"),
        ("pink", "grey"),
        ("brown", "purple"),
        ("grey", "cyan"),
        ("purple", "black"),
        ("blue", "black"),
        ("grey", "green"),
        ("brown", "green"),
        ("orange", "pink"),
        ("grey", "purple"),
        ("green", "cyan"),
    )
)


def tint(name: str, rng: Random, shifted: bool, jitter: int = 14) -> Rgb:
    """An RGB value (0–255) for a colour name, varied a little from picture to picture."""
    base = (SHIFTED_COLOURS if shifted else COLOURS)[name]
    light = rng.randint(-jitter, jitter)
    red, green, blue = (min(255, max(0, c + light + rng.randint(-5, 5))) for c in base)
    return red, green, blue


def readable_on(ground: str) -> tuple[str, ...]:
    """Colours that stand out on `ground`."""
    return tuple(n for n in NAMES if n != ground and frozenset((n, ground)) not in _CLOSE)
