"""What crosses the border between the router and a replica. Frozen, picklable, no dependencies.

A request goes in as one GenerationRequest; a stream of events comes back: one Started, any number
of Deltas, one Finished. Errors travel as ServiceError. The first event carries all that response
headers need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from m3_backend.costs import CostModel
from m3_backend.scales import ScaleLadder, Tiling

Role = Literal["system", "user", "assistant"]
CacheLevel = Literal["prefix", "memory", "redis", "miss"]
FinishReason = Literal["stop", "length"]
Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One uploaded image, still encoded.

    Args:
        data: the file's bytes, format already checked against the allowlist.
        digest: SHA-256 of `data`, hex. The full digest is the image's identity in every cache.
        width, height: pixels as displayed (EXIF orientation applied).
    """

    data: bytes = field(repr=False)
    digest: str
    width: int
    height: int


def digest_of(data: bytes) -> str:
    """The SHA-256 hex digest that names an image everywhere."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of `GenerationRequest.images[index]` inside a turn."""

    index: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: text and image places in the order they were given."""

    role: Role
    content: tuple[str | ImageSlot, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. The defaults are greedy, as in the M3 evaluation.

    Args:
        max_tokens: most tokens to generate; None leaves it to the engine's own bound.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        stop: generation ends before any of these strings appears in the answer.
        seed: makes sampling repeatable, whatever else is in the batch.
        top_logprobs: alternatives reported per token; None reports no log-probabilities at all.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation to be continued at given token scales.

    Args:
        scales: one scale per image, each on the model's ladder.
        cache_salt: separates every cache by tenant; features stored under one salt are invisible
            to others.
        deadline: Unix time in seconds after which the answer is worthless, or None.
        priority: "batch" waits behind "interactive".
        pool: name of the pool of replicas that it goes to, where there are several.
        work_ms: estimated replica time, its images known there.
        encode_ms: estimated replica time besides, where they are not.
        keep_s: for so long the finest features of its images stay in the replica's memory, as far
            as there is room for that; for shadow labels.
        whole: nobody reads the answer before its end, so that its text may come in one piece.
    """

    request_id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageInput, ...]
    scales: tuple[int, ...]
    sampling: Sampling = Sampling()
    cache_salt: str = ""
    deadline: float | None = None
    priority: Priority = "interactive"
    pool: str = ""
    work_ms: float = 0.0
    encode_ms: float = 0.0
    keep_s: float = 0.0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token with its log-probability (natural log) and the best alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted and its images are features. Sent before the first token.

    Args:
        image_tokens: tokens each image takes in the prompt.
        prompt_tokens: whole prompt, image tokens included.
        cache: where each image's features came from; "prefix" if none were needed, because the
            image's tokens were in KV memory already.
        queue_ms, fetch_ms, encode_ms: waiting, reading caches, vision tower and projector.
        replica: which replica answers.
        degraded: parts that were down for this request and were done without ("redis"), for the
            caller to see.
    """

    image_tokens: tuple[int, ...]
    prompt_tokens: int
    cache: tuple[CacheLevel, ...]
    queue_ms: float
    fetch_ms: float
    encode_ms: float
    replica: str = ""
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """More of the answer. `text` is empty while a multi-byte character or a stop string is open."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `prefill_ms` runs from admission to the first token."""

    reason: FinishReason
    completion_tokens: int
    prefill_ms: float
    decode_ms: float


Event = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas that serve some of a model's scales.

    Args:
        scales: ascending.
        costs: as measured on one of them.
    """

    name: str
    scales: tuple[int, ...]
    costs: CostModel

    def serves(self, scales: Iterable[int]) -> bool:
        """Whether images at these scales can stand in one request to it."""
        return set(scales) <= set(self.scales)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the router must know about the model behind a backend.

    Args:
        name: what operators call it ("m3-tiny", "mucai/llava-v1.5-7b-m3").
        identity: hash of weights and config; part of cache keys and of a predictor artefact's
            identity.
        processor: hash of the image preprocessing; part of cache keys.
        max_context: tokens, prompt and answer together.
        costs: estimated replica time by scale, fitted on the replica at start; where there are
            pools, of one that serves the finest scale.
        pools: replicas that serve some scales only; together they serve all. Empty if all replicas
            serve all of them.
    """

    name: str
    identity: str
    processor: str
    ladder: ScaleLadder
    tiling: Tiling | None
    max_context: int
    costs: CostModel
    pools: tuple[Pool, ...] = ()
