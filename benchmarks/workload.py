"""Questions about drawn pictures, and the order in which a load asks them."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from m3_backend.messages import ImageInput, digest_of
from m3_backend.training.worlds import draw

QUALITY = 90


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a picture.

    Args:
        picture: its number.
        family: the kind of question.
    """

    picture: int
    question: str
    answer: str
    family: str


class Pictures:
    """Drawn pictures as JPEG files with their questions; numbers from 0.

    Args:
        split: of worlds that m3-tiny was not trained on; other splits and seeds, other pictures.
    """

    def __init__(self, count: int, *, split: str, seed: int) -> None:
        drawn = [draw(split, index, seed=seed) for index in range(count)]
        self.files = [_jpeg(picture.image) for picture in drawn]
        self._sizes = [picture.image.size for picture in drawn]
        self._questions = [picture.questions for picture in drawn]
        self._parts = [_part(file) for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def ask(self, picture: int, rng: random.Random) -> Asked:
        """One of a picture's questions."""
        question = rng.choice(self._questions[picture])
        return Asked(picture, question.text, question.answer, question.family)

    def body(self, asked: Asked, options: bytes, suffix: str = "") -> bytes:
        """A chat request; `options` are further members of the body, as JSON without braces."""
        question = json.dumps(asked.question + suffix).encode()
        return b"".join(
            (
                b"{",
                options,
                b',"messages":[{"role":"user","content":[',
                self._parts[asked.picture],
                b',{"type":"text","text":%s}]}]}' % question,
            )
        )

    def image(self, picture: int) -> ImageInput:
        """As the router hands it to a replica."""
        data = self.files[picture]
        return ImageInput(data, digest_of(data), *self._sizes[picture])


def options_of(options: dict[str, Any]) -> bytes:
    """What `Pictures.body` takes."""
    return json.dumps(options, separators=(",", ":")).encode()[1:-1]


def again_or_new(count: int, reuse: float, skew: float, rng: random.Random) -> list[int]:
    """Pictures of `count` requests, numbered in the order in which they first come.

    Args:
        reuse: share of requests (the first one aside) about a picture that was asked about before.
        skew: of these, exponent of Zipf's law over the pictures in the order of their first coming;
            at 0 all are equally likely.
    """
    order: list[int] = []
    weights: list[float] = []  # running sums
    for _ in range(count):
        if weights and rng.random() < reuse:
            order += rng.choices(range(len(weights)), cum_weights=weights)
        else:
            order.append(len(weights))
            weight = 1 / (len(weights) + 1) ** skew
            weights.append(weight + (weights[-1] if weights else 0.0))
    return order


def by_popularity(count: int, pictures: int, skew: float, rng: random.Random) -> list[int]:
    """Pictures of `count` requests, number k with a probability in proportion to (k + 1)^-skew."""
    sums = list(accumulate(1 / (rank + 1) ** skew for rank in range(pictures)))
    return rng.choices(range(pictures), cum_weights=sums, k=count)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed; 0 of none."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def _jpeg(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _part(file: bytes) -> bytes:
    url = f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"
    return json.dumps({"type": "image_url", "image_url": {"url": url}}).encode()
