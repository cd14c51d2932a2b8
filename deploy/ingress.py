"""The replica that speaks HTTP: the router's FastAPI app over a handle to the model."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy import logs
from deploy.backend import HandleBackend
from deploy.config import Config
from deploy.metrics import ReplicaMetrics
from deploy.predictors import watch_predictor
from router.access import Access
from router.http import build_app
from router.service import RoutingService
from router.telemetry import Telemetry


class Ingress:
    """Builds the app inside the replica, where the handle and the predictor are."""

    def __init__(self, config: Config, model: DeploymentHandle[Any]) -> None:
        logs.configure(config.log_level)
        self._config = config
        self._backend = HandleBackend(model)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, once the model is there: only then can be seen whether an artefact fits it.

        Raises:
            KeysError: configured API keys cannot be read; the replica does not start.
            ArtifactError: a configured artefact is missing, broken or made for another model; the
                replica does not start.
        """
        config = self._config
        access = Access.open(config.router.access, config.redis_url)
        watch = watch_predictor(config, await self._backend.info())
        predictor = None if watch is None else watch.predictor
        service = RoutingService(self._backend, predictor, config.router)
        name = serve.get_replica_context().replica_id.unique_id
        telemetry, replicas = Telemetry({"ingress": name}), ReplicaMetrics(self._backend.stats)
        telemetry.registry.register(replicas)
        return build_app(
            service,
            telemetry,
            access=access,
            before_scrape=replicas.refresh,
            background=None if watch is None else partial(watch.keep, service, telemetry),
        )
