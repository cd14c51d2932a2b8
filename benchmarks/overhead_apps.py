"""The two Serve apps that `overhead` compares: the service without a model, and nothing at all."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve

from deploy.app import LOGGING
from deploy.config import Config
from deploy.transport import Message, packed
from m3_backend.messages import Delta, Event, Finished, GenerationRequest, ModelInfo, Started
from m3_backend.stats import CacheStats, EngineStats

ANSWER = "red"
app = FastAPI()


class NoModel:
    """Answers as `deploy.replica.M3Replica` does, at once. It only loads the model to describe
    it.
    """

    def __init__(self, config: Config) -> None:
        from deploy.engines import open_engine  # noqa: PLC0415 - loads torch

        engine = open_engine(config, replica="")
        self._info = engine.info
        engine.close()
        self._slots = config.model.max_batch
        self._name = serve.get_replica_context().replica_id.unique_id

    async def info(self) -> ModelInfo:
        return self._info

    async def stats(self) -> tuple[str, EngineStats]:
        cache = CacheStats(0, 0, 0, 0, 0, 0, None, 0, 0)
        return self._name, EngineStats(0, 0, 0, self._slots, cache)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Message]:
        async for message in packed(self._answer(request), whole=request.whole):
            yield message

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        tokens = sum(request.scales)
        cache: Any = ("memory",) * len(request.scales)
        yield Started(request.scales, tokens, cache, 0.0, 0.0, 0.0, replica=self._name)
        yield Delta(ANSWER, (1,))
        yield Finished("stop", 1, 0.0, 0.0)


class NothingBehind:
    """Three small events."""

    async def generate(self, body: bytes) -> AsyncIterator[dict[str, int]]:
        for number in range(3):
            yield {"event": number, "read": len(body)}


@serve.ingress(app)
class NothingInFront:
    """Hands the body on and sends the events back."""

    def __init__(self, behind: Any) -> None:
        self._streaming = behind.options(stream=True)

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> JSONResponse:
        body = await request.body()
        events = [event async for event in self._streaming.generate.remote(body)]
        return JSONResponse({"events": events, "text": ANSWER})

    @app.get("/readyz")
    async def ready(self) -> JSONResponse:
        return JSONResponse({})


def noop_application(config: Config) -> serve.Application:
    """As many replicas, places and hops as the service has."""
    ingress = config.serve.ingress
    behind = serve.deployment(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=config.places_per_replica,
        logging_config=LOGGING,
    )(NothingBehind)
    front = serve.deployment(
        num_replicas=ingress.replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=ingress.max_ongoing_requests,
        logging_config=LOGGING,
    )(NothingInFront)
    return front.bind(behind.bind())
