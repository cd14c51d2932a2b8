"""Which replica a picture's questions go to. No Ray, no clock.

Every picture has an order of replicas of its own (rendezvous hashing), the same in every ingress
and without anything to remember or to tell each other; a replica that comes or goes moves only its
own share of the pictures. So the caches of n replicas hold n different sets of pictures, and the
second question about one finds its features, or the tokens themselves, where the first left them.

The first of the order gets the request while its outstanding work, in tokens, is within a bound of
the mean (consistent hashing with bounded loads, arXiv 1608.01350), else the next that is: a picture
that everybody asks about spreads over as many replicas as it takes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

from m3_backend.messages import GenerationRequest

# Work that a replica may have whatever the others do: a wait behind so little costs less than
# encoding the picture anew elsewhere.
SLACK = 2048
BOUND = 1.25  # times the mean work of all replicas
_TEXT = 32  # tokens of a question and its answer, about


def work_of(request: GenerationRequest) -> int:
    """Tokens that a request will keep a replica busy with, about."""
    return sum(request.scales) + _TEXT


def picture_of(request: GenerationRequest) -> str | None:
    """What requests that share features share; None without pictures."""
    if not request.images:
        return None
    return f"{request.cache_salt}:{request.images[0].digest}"


def rank(
    picture: str | None, own: int, work: Mapping[str, int], rng: random.Random
) -> list[list[str]]:
    """Replicas in the order in which to try them, the equally good ones together.

    Args:
        picture: as `picture_of` gives.
        own: work of the request itself.
        work: outstanding work per replica, of all that are there.
    """
    if not work:
        return []
    fallback = two_choices(work, rng)
    if picture is None:
        return fallback
    most = max(SLACK, BOUND * (sum(work.values()) + own) / len(work))
    order = sorted(work, key=lambda replica: _weight(picture, replica))
    return [[replica] for replica in order if work[replica] + own <= most] + fallback


def two_choices(work: Mapping[str, int], rng: random.Random) -> list[list[str]]:
    """Of two at random the one with less work, then the other, then all."""
    chosen = rng.sample(list(work), min(2, len(work)))
    ordered = [[replica] for replica in sorted(chosen, key=work.__getitem__)]
    return [*ordered, list(work)] if len(work) > 2 else ordered


def _weight(picture: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{picture}@{replica}".encode(), digest_size=8).digest()
