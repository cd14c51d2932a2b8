"""One request inside the engine, from submission to its last event."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from m3_backend.answer_text import AnswerText
from m3_backend.costs import CostModel
from m3_backend.errors import ServiceError
from m3_backend.feature_cache import Lookup
from m3_backend.messages import Event, ImageInput, Priority, Sampling
from m3_backend.pace import Line
from m3_backend.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done, whether it came as a conversation or as token ids.

    Args:
        make_prompt: tokenises; called once, off the caller's event loop.
        ignore_eos: generate `max_tokens` tokens whatever they are.
    """

    make_prompt: Callable[[], Prompt]
    images: tuple[ImageInput, ...]
    scales: tuple[int, ...]
    sampling: Sampling
    salt: str = ""
    deadline: float | None = None
    priority: Priority = "interactive"
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the batch.

    Args:
        embeddings: the prompt, [prompt_tokens, hidden].
        limit: most tokens to generate.
    """

    embeddings: Tensor
    image_tokens: tuple[int, ...]
    lookups: tuple[Lookup, ...]
    limit: int


@dataclass(eq=False, slots=True)
class Job:
    """The mutable state of one request. Preparation fills its part, then the engine's thread.

    Args:
        deliver: hands an event or the final error to the caller, from any thread.
        context: most tokens that any request may take, whatever this one asks for.
        submitted, admitted, first_token_at: seconds on the engine's clock.
        cached: tokens whose keys and values are in the slot.
    """

    work: Work
    deliver: Callable[[Event | ServiceError], None]
    text: AnswerText
    context: int
    submitted: float
    cancelled: bool = False

    prompt_tokens: int = 0
    prepared: Prepared | None = None

    admitted: float = 0.0
    first_token_at: float = 0.0
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.work.sampling.seed)

    def draw(self) -> float:
        """A uniform number of this request's own sequence; greedy requests need none."""
        return self._rng.random() if self.work.sampling.temperature > 0 else 0.0

    @property
    def priority(self) -> Priority:
        return self.work.priority

    def line(self, costs: CostModel, slots: int, answer_tokens: float) -> Line:
        """This request alone as a line, by what is known of it; its images count as not cached.

        Args:
            answer_tokens: what an answer takes, if it may.
        """
        prompt = self.prompt_tokens or sum(self.work.scales)
        answer = min(answer_tokens, self.work.sampling.max_tokens or self.context)
        return Line(
            1,
            costs.start_ms(prompt, len(self.work.images)),
            costs.hold_ms(answer, slots),
        )

    @property
    def ready(self) -> Prepared:
        """What preparation made of it; only asked once it is in the scheduler."""
        assert self.prepared is not None
        return self.prepared

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens to be prefilled and tokens that may still be generated."""
        asked = min(self.work.sampling.max_tokens or 0, self.context)
        limit = self.prepared.limit if self.prepared else asked
        return max(self.prompt_tokens - self.cached, 0) + limit - len(self.tokens)
