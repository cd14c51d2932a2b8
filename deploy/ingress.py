"""The replica that speaks HTTP: the router's FastAPI app over a handle to the model."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy import logs
from deploy.backend import HandleBackend
from deploy.config import Config
from deploy.metrics import AskReplicasFirst, ReplicaMetrics
from deploy.predictors import open_predictor
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
            ArtifactError: a configured artefact is missing, broken or made for another model; the
                replica does not start.
        """
        predictor = open_predictor(self._config, await self._backend.info())
        service = RoutingService(self._backend, predictor, self._config.router)
        name = serve.get_replica_context().replica_id.unique_id
        telemetry, replicas = Telemetry({"ingress": name}), ReplicaMetrics()
        telemetry.registry.register(replicas)
        app = build_app(service, telemetry)
        app.add_middleware(AskReplicasFirst, metrics=replicas, ask=self._backend.stats)
        return app
