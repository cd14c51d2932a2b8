"""Which replica a picture's questions go to. No Ray, no clock.

Every picture has an order of replicas of its own (rendezvous hashing), the same in every ingress
and without anything to remember or to tell each other; a replica that comes or goes moves only its
own share of the pictures. So the caches of n replicas hold n different sets of pictures, and the
second question about one finds its features, or the tokens themselves, where the first left them.

The first of the order is the picture's home. Another replica is worth going to only if the wait
there is shorter by more than what encoding the picture costs; the further down the order, the more
of that is asked for, so that a picture that everybody asks about spreads over as few replicas as it
takes, and no replica ever has more than so much more to do than any other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

from m3_backend.messages import GenerationRequest

FURTHEST = 3  # encodings, beyond which a place in the order does not matter
_LEAST_MS = 1.0  # that any request counts as


def work_of(request: GenerationRequest) -> float:
    """Milliseconds that a request will keep a replica busy, about; its pictures known there."""
    return max(request.work_ms, _LEAST_MS)


def picture_of(request: GenerationRequest) -> str | None:
    """What requests that share features share; None without pictures."""
    if not request.images:
        return None
    return f"{request.cache_salt}:{request.images[0].digest}"


def rank(
    picture: str | None, encode_ms: float, work: Mapping[str, float], rng: random.Random
) -> list[list[str]]:
    """Replicas in the order in which to try them, the equally good ones together.

    Args:
        picture: as `picture_of` gives.
        encode_ms: what a replica that does not know the request's pictures takes for them.
        work: outstanding work per replica, of all that are there, in milliseconds.
    """
    if not work:
        return []
    if picture is None:
        return two_choices(work, rng)
    order = sorted(work, key=lambda replica: _weight(picture, replica))
    wait = {
        replica: work[replica] + encode_ms * min(place, FURTHEST)
        for place, replica in enumerate(order)
    }
    return [[replica] for replica in sorted(order, key=wait.__getitem__)]


def two_choices(work: Mapping[str, float], rng: random.Random) -> list[list[str]]:
    """Of two at random the one with less work, then the other, then all."""
    chosen = rng.sample(list(work), min(2, len(work)))
    ordered = [[replica] for replica in sorted(chosen, key=work.__getitem__)]
    return [*ordered, list(work)] if len(work) > 2 else ordered


def _weight(picture: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{picture}@{replica}".encode(), digest_size=8).digest()
