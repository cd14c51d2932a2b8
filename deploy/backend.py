"""The router's backend port over a Ray Serve handle: streams, cancels, translates errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deploy.shadow import ShadowStats
from deploy.transport import Message, unpacked
from m3_backend.errors import BackendError, OverloadedError, ServiceError
from m3_backend.messages import Event, GenerationRequest, ModelInfo
from m3_backend.stats import BreakerState, EngineStats
from router.ports import Replicas

PING_TIMEOUT_S = 2.0
BREAKER_STATES: tuple[BreakerState, ...] = ("open", "half_open", "closed")  # worst first
REPLICA_LOST = (
    RayActorError,
    ActorUnavailableError,
    ReplicaUnavailableError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
)


def translate(error: Exception) -> ServiceError:
    """What the caller should hear about an error that came out of a handle call."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ServiceError):
        return cause
    if isinstance(cause, BackPressureError):
        return OverloadedError(
            "All places at the model are taken; try again shortly.",
            retry_after_s=cause.retry_after_s or 1.0,
        )
    if isinstance(cause, RequestCancelledError):
        return BackendError("The request was cancelled at the replica.", code="request_cancelled")
    if isinstance(cause, DeploymentUnavailableError):
        return BackendError(
            "No replica of the model is running; see the service's log.",
            code="backend_unavailable",
            status=503,
        )
    if isinstance(cause, REPLICA_LOST):
        return BackendError(
            "The replica that had this request is gone; another one takes over. Send it again.",
            code="replica_lost",
            retry_after_s=1.0,
        )
    return BackendError("The model failed on this request; the request id names it in the log.")


class HandleBackend:
    """A BackendPort that sends requests to the replicas behind a handle.

    Args:
        handle: of a deployment of `deploy.replica.M3Replica`.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        # One for all: a handle made for each request would have a request router for each, which
        # knows nothing of the others' requests.
        self._streaming = handle.options(stream=True)
        self._info: ModelInfo | None = None

    async def info(self) -> ModelInfo:
        """What the model is; waits for the first replica to be up."""
        if self._info is None:
            try:
                self._info = await self._handle.info.remote()
            except Exception as error:
                raise translate(error) from error
        return self._info

    async def ping(self) -> Replicas:
        """Asks all replicas. One that is lost or broken fails at once; one whose places are taken
        keeps the call waiting, and counts as there. (Serve's health check ends one that hangs.)
        """
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                call = self._handle.broadcast("stats")
                answers = await call.results_async(return_exceptions=True)
        except TimeoutError:
            return Replicas()
        except Exception as error:
            raise translate(error) from error
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if len(errors) == len(answers):
            raise translate(errors[0]) from errors[0]
        said = [answer for answer in answers if not isinstance(answer, Exception)]
        breakers = {stats.cache.breaker for _, stats in said}
        worst = next((state for state in BREAKER_STATES if state in breakers), None)
        return Replicas(answering=len(said), asked=len(answers), redis=worst)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Started, Deltas, Finished. Closing it early cancels the request on its replica."""
        messages = cast(
            "DeploymentResponseGenerator[Message]", self._streaming.generate.remote(request)
        )
        try:
            async for event in unpacked(messages):
                yield event
        except ServiceError:
            raise
        except Exception as error:
            raise translate(error) from error
        except BaseException:  # closed early, or cancelled because the client has left
            messages.cancel()  # type: ignore[no-untyped-call]
            raise

    async def shadow_stats(self) -> dict[str, ShadowStats]:
        """What became of drawn requests in every running replica, by its name."""
        return dict(await self._handle.broadcast("shadow_stats").results_async())

    async def stats(self) -> dict[str, EngineStats]:
        """The engine statistics of every running replica, by its name."""
        return dict(await self._handle.broadcast("stats").results_async())
