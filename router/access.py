"""Who asks, and what that allows: keys, limits and the salt that keeps callers' caches apart."""

from __future__ import annotations

import asyncio
import hmac
import math
from hashlib import sha256

from m3_backend.errors import ServiceError
from router.auth import LONGEST_KEY, Key, KeyStore, open_keys
from router.config import AccessConfig
from router.errors import InvalidKeyError, OperatorOnlyError
from router.limits import Charge, Limiter, Quota, Standing, refusal

SCHEME = "bearer"


class Caller:
    """Who sends one request, and how that leaves their limits.

    Args:
        key: None where nobody is asked for one.
    """

    def __init__(self, key: Key | None = None, limiter: Limiter | None = None) -> None:
        self._key = key
        self._limiter = limiter or Limiter()
        self._account = "" if key is None else self._derived(key, b"account")[:32]
        self._quotas: list[Quota] = []
        if key is not None and key.requests_per_minute is not None:
            self._quotas.append(Quota("requests", key.requests_per_minute))
        if key is not None and key.tokens_per_minute is not None:
            self._quotas.append(Quota("tokens", key.tokens_per_minute))
        self._standings: tuple[Standing, ...] = ()
        self._requests = 0  # that were asked for so far
        self.degraded: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """Of the key, for logs."""
        return None if self._key is None else self._key.name

    def require_operator(self) -> None:
        """Raises OperatorOnlyError for a key that may see its own requests only."""
        if self._key is not None and not self._key.operator:
            raise OperatorOnlyError

    def may_judge(self, key: str | None) -> bool:
        """Whether an answer to the key of this name (None: to nobody's) may be judged."""
        return self.name == key or (self._key is not None and self._key.operator)

    def cache_salt(self, own: str) -> str:
        """The salt of this caller's caches, from the request's own.

        Keyed with what only the service knows of the API key, so that no caller can choose a salt
        that is another's: how fast an answer comes tells whether one's own key has seen an image.
        """
        if self._key is None:
            return own
        return self._derived(self._key, b"cache-salt\0" + own.encode())

    @staticmethod
    def _derived(key: Key, purpose: bytes) -> str:
        return hmac.new(key.digest, purpose, sha256).hexdigest()

    async def take_requests(self, count: int = 1) -> None:
        """Counts requests. Raises RateLimitError if there is no room for all of them."""
        self._requests += count
        await self._take(requests=count)

    async def take_tokens(self, tokens: int) -> Charge:
        """Reserves the most that a request can use. Raises RateLimitError if there is no room."""
        if not self._quotas:
            return Charge(self._limiter, self._account, None, tokens)
        reserving = asyncio.ensure_future(self._reserve(tokens))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:  # Redis may have taken them by now
            reserving.add_done_callback(_give_back)
            raise

    async def _reserve(self, tokens: int) -> Charge:
        degraded = await self._take(tokens=tokens)
        quota = next((quota for quota in self._quotas if quota.kind == "tokens"), None)
        return Charge(self._limiter, self._account, quota, tokens, alone=degraded)

    async def _take(self, requests: int = 0, tokens: int = 0) -> bool:
        """Whether this process decided alone, because Redis is away."""
        if not self._quotas:
            return False
        costs = [requests if quota.kind == "requests" else tokens for quota in self._quotas]
        taken = await self._limiter.take(self._account, self._quotas, costs)
        self._standings = taken.standings
        if taken.degraded:
            self.degraded = ("redis",)
        if taken.short_of is not None:
            whole = self._requests if taken.short_of.kind == "requests" else tokens
            raise refusal(taken, taken.short_of, whole)
        return taken.degraded

    def headers(self) -> dict[str, str]:
        """OpenAI's rate limit headers, for the limits that this caller has."""
        fields = {}
        for standing in self._standings:
            kind = standing.quota.kind
            fields[f"x-ratelimit-limit-{kind}"] = str(standing.quota.limit)
            fields[f"x-ratelimit-remaining-{kind}"] = str(standing.remaining)
            fields[f"x-ratelimit-reset-{kind}"] = _duration(standing.reset_s)
        return fields


def _give_back(reserving: asyncio.Task[Charge]) -> None:
    """Frees what nobody will use."""
    if not reserving.cancelled() and reserving.exception() is None:
        reserving.result().settle(0)


ANYBODY = Caller()


class Access:
    """The rules at the door.

    Args:
        keys: None lets everybody in.
    """

    def __init__(self, keys: KeyStore | None, limiter: Limiter) -> None:
        self._keys, self._limiter = keys, limiter

    @classmethod
    def open(cls, config: AccessConfig, redis_url: str | None = None) -> Access:
        """What is configured, with limits counted in Redis if there is one.

        Raises:
            KeysError: keys are configured and cannot be read.
        """
        keys = open_keys(config)
        return cls(keys, Limiter(None if keys is None else redis_url))

    @property
    def breaker_open(self) -> bool:
        """Whether limits are counted without the Redis that is configured, after failures."""
        return self._limiter.breaker_open

    async def admit(self, authorization: str | None) -> Caller:
        """Who presents this `Authorization` header. Raises InvalidKeyError."""
        if self._keys is None:
            return ANYBODY
        scheme, _, presented = (authorization or "").strip().partition(" ")
        if scheme.lower() != SCHEME:
            raise InvalidKeyError("Send an API key, as 'Authorization: Bearer <key>'.")
        presented = presented.strip()
        key = await self._keys.find(presented) if len(presented) <= LONGEST_KEY else None
        if key is None:
            raise InvalidKeyError("This API key is not known here.")
        return Caller(key, self._limiter)

    async def close(self) -> None:
        await self._limiter.close()


def error_headers(error: ServiceError) -> dict[str, str]:
    """What HTTP says about errors beside their body."""
    fields = {}
    if error.retry_after_s is not None:  # rounded up: earlier would be refused again
        fields["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, InvalidKeyError):
        fields["www-authenticate"] = "Bearer"
    if error.status == 429 and error.retry_after_s is None:
        fields["x-should-retry"] = "false"  # OpenAI's clients would try again by themselves
    return fields


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 2m0s."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)  # whole ones, but for rounding errors
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
