"""The questions that `engine` asks: drawn pictures, at fixed scales or the predictor's choice."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.frontier import ARTIFACT
from m3_backend.checkpoint import Checkpoint
from m3_backend.messages import ImageInput, ImageSlot, Turn, digest_of
from m3_backend.prompt import Prompt
from m3_backend.training.worlds import draw
from predictor.metrics import exact_match
from predictor.predictor import Predictor
from predictor.selection import select

MOST_ANSWER = 12  # tokens; m3-tiny's own answers end before


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a picture, with the chances of every scale as the predictor sees them."""

    prompt: Prompt
    answer: str
    p_success: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Args:
        limit: most tokens of the answer.
        whole: generate as many, whatever they are.
    """

    image: ImageInput
    question: Question
    scale: int
    limit: int = MOST_ANSWER
    whole: bool = False

    @property
    def prompt(self) -> Prompt:
        return self.question.prompt

    def is_right(self, answer: str) -> bool:
        return exact_match(answer, [self.question.answer]) == 1.0


ChooseScale = Callable[[Question], int]


class Requests:
    """Draws pictures once; every call of `make` gives them other digests, so no cache knows them.

    Args:
        pictures: how many; calls with different numbers ask about different ones until they are
            used up, and begin again then.
    """

    def __init__(self, checkpoint: Checkpoint, pictures: int) -> None:
        assert checkpoint.tokenizer is not None
        self._tokenizer, self._template = checkpoint.tokenizer, checkpoint.template
        self._ladder = checkpoint.ladder
        self._predictor = Predictor.load(ARTIFACT)
        self._pictures = [self._draw(index) for index in range(pictures)]
        self._made = 0

    def at(self, scale: int) -> ChooseScale:
        return lambda question: scale

    def chosen(self, max_regret: float) -> ChooseScale:
        """By the packaged predictor at a bound on regret, as the service does without load."""
        price = self._predictor.threshold(max_regret)
        scales = self._ladder.scales
        shares = [scale / self._ladder.finest for scale in scales]
        return lambda question: scales[select(question.p_success, shares, price)]

    def make(self, choose: ChooseScale, count: int, number: int, reuse: float = 0.0) -> list[Asked]:
        """`count` requests, the same pictures and questions for the same numbers.

        Args:
            reuse: share that asks another question about a picture that was asked about before.
        """
        self._made += 1
        rng = random.Random(f"{number} {reuse}")
        made: list[Asked] = []
        seen: list[tuple[ImageInput, Sequence[Question]]] = []
        while len(made) < count:
            if seen and rng.random() < reuse:
                image, questions = rng.choice(seen)
            else:
                at = (number * count + len(seen)) % len(self._pictures)
                image, questions = self._pictures[at]
                own = hashlib.sha256(f"{image.digest} {self._made}".encode()).hexdigest()
                image = replace(image, digest=own)
                seen.append((image, questions))
            question = rng.choice(questions)
            made.append(Asked(image, question, choose(question)))
        return made

    def _draw(self, index: int) -> tuple[ImageInput, tuple[Question, ...]]:
        picture = draw("engine", index, seed=3)
        file = io.BytesIO()
        picture.image.save(file, "JPEG", quality=90)
        data = file.getvalue()
        image = ImageInput(data, digest_of(data), *picture.image.size)
        return image, tuple(
            Question(
                self._prompt(question.text),
                question.answer,
                self._predictor.predict(image, question.text).p_success,
            )
            for question in picture.questions
        )

    def _prompt(self, question: str) -> Prompt:
        turns = [Turn("user", (ImageSlot(0), question))]
        return self._tokenizer.prompt(self._template.render(turns))


def mean_tokens(asked: Sequence[Asked]) -> float:
    """Image tokens per request."""
    return sum(one.scale for one in asked) / len(asked)
