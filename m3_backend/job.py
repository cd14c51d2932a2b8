"""One request inside the engine, from submission to its last event."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m3_backend.answer_text import AnswerText
from m3_backend.costs import CostModel
from m3_backend.errors import ServiceError
from m3_backend.kv_memory import Holding, PrefixName
from m3_backend.messages import CacheLevel, Event, ImageInput, Priority, Sampling
from m3_backend.pace import Line
from m3_backend.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done, whether it came as a conversation or as token ids.

    Args:
        make_prompt: tokenises; called once, off the caller's event loop.
        ignore_eos: generate `max_tokens` tokens whatever they are.
        keep_s: for so long its images' finest features are to stay in memory.
    """

    make_prompt: Callable[[], Prompt]
    images: tuple[ImageInput, ...]
    scales: tuple[int, ...]
    sampling: Sampling
    salt: str = ""
    deadline: float | None = None
    priority: Priority = "interactive"
    ignore_eos: bool = False
    keep_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the batch.

    Args:
        embeddings: the prompt, [prompt_tokens, hidden], or what follows its prefix if that was in
            KV memory when this was made.
        cache: where each image came from.
        fetch_ms, encode_ms: what that took, of all images.
        degraded: Redis could not be asked.
        limit: most tokens to generate.
        prefix: what questions about the same pictures share.
    """

    embeddings: Tensor
    image_tokens: tuple[int, ...]
    cache: tuple[CacheLevel, ...]
    fetch_ms: float
    encode_ms: float
    degraded: bool
    limit: int
    prefix: PrefixName | None


@dataclass(eq=False, slots=True)
class Job:
    """The mutable state of one request. Preparation fills its part, then the engine's thread.

    Args:
        deliver: hands an event or the final error to the caller, from any thread.
        context: most tokens that any request may take, whatever this one asks for.
        submitted, admitted, first_token_at: seconds on the engine's clock.
        cached, holding: tokens whose keys and values are in KV memory, and the rows they have.
        alone: prepare it whole, since the prefix that it counted on has gone.
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
    holding: Holding | None = None
    alone: bool = False
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
    def length(self) -> int:
        """Tokens that are known: the prompt's and the answer's so far."""
        return self.prompt_tokens + len(self.tokens)

    @property
    def most(self) -> int:
        return self.prompt_tokens + self.ready.limit

    @property
    def is_answering(self) -> bool:
        """Only its last token is still to be computed, and that one is of the answer."""
        return bool(self.tokens) and self.cached == self.length - 1

    @property
    def prefix(self) -> PrefixName | None:
        return self.ready.prefix

    @property
    def is_whole(self) -> bool:
        return len(self.ready.embeddings) == self.prompt_tokens

    def piece(self, tokens: int, embed: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """The embeddings [tokens, hidden] of what comes next. One that starts over prefills its
        answer, too.
        """
        embeddings = self.ready.embeddings
        skipped = self.prompt_tokens - len(embeddings)
        piece = embeddings[self.cached - skipped : self.cached - skipped + tokens]
        if (more := tokens - len(piece)) > 0:
            first = self.cached + len(piece) - self.prompt_tokens
            piece = torch.cat([piece, embed(self.tokens[first : first + more])])
        return piece

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
