"""The replica that speaks HTTP: the router's FastAPI app over a handle to the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from prometheus_client.core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy import logs
from deploy.announcement import EXAMPLES
from deploy.config import Config
from deploy.feedback import open_feedback, open_receipting
from deploy.garbage import settle
from deploy.metrics import AllIngresses, Exposed, RecorderMetrics, ReplicaMetrics, ShadowMetrics
from deploy.pools import open_backend
from deploy.predictors import watch_observed, watch_predictor
from deploy.recorder import RecorderStats, open_stream
from deploy.shadow import open_queue
from predictor.record_store import REQUESTS
from router.access import Access
from router.admission import Admission
from router.dashboard.looks import Looked
from router.draws import Draws, is_drawn, order_of
from router.drift import DriftWatch
from router.http import build_app
from router.observing import Observer
from router.pools import PoolLoads
from router.recording import Outbox, Recording
from router.request_log import Line
from router.service import RoutingService
from router.telemetry import Telemetry
from router.tightening import Board, TighteningWatch
from router.tracing import open_tracing
from router.version import installed_version

DRAWN_BUFFER = 64  # drawn requests that wait for Redis; they may hold their images

logger = logging.getLogger("m3_router.deploy")


class Ingress:
    """Builds the app inside the replica, where the handle and the predictor are."""

    def __init__(
        self,
        config: Config,
        models: Mapping[str, DeploymentHandle[Any]],
        recorder: DeploymentHandle[Any] | None = None,
        dashboard: DeploymentHandle[Any] | None = None,
    ) -> None:
        logs.configure(config.log_level)
        self._config = config
        self._backend = open_backend(config, models)
        self._recorder, self._dashboard = recorder, dashboard
        self._recording: Recording | None = None
        context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        self._deployment, self._app = context.deployment, context.app_name
        self._telemetry: Telemetry | None = None
        self._admission: Admission | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, once the model is there: only then can be seen whether an artefact fits it.

        Raises:
            KeysError: configured API keys cannot be read; the replica does not start.
            TracingError: traces are configured and cannot be sent; the replica does not start.
            ArtifactError: a configured artefact is missing, broken or made for another model; the
                replica does not start.
            ConfigError: pools that do not fit the model; the replica does not start.
        """
        config = self._config
        access = Access.open(config.router.access, config.redis_url)
        tracing = open_tracing(config.router.telemetry, self._name)
        info = await self._backend.info()
        watch = watch_predictor(config, info)
        predictor = None if watch is None else watch.predictor
        admission = self._admission = Admission(
            config.router.load,
            config.router.planning_threads,
            ingresses=config.serve.ingress.replicas,
        )
        draws = Draws(config.router.shadow) if config.shadow_labels else None
        pools = PoolLoads(config.router.load, ingresses=config.serve.ingress.replicas)
        service = RoutingService(
            self._backend, predictor, config.router, admission=admission, draws=draws, pools=pools
        )
        replicas = ReplicaMetrics(self._backend.stats)
        observed = watch_observed(config, info)
        observer = None if observed is None else Observer()
        if observer is not None and observed is not None:
            observer.use(observed.predictor, refused=observed.refused)
        recording = self._recording = open_recording(config, self._name, observer)
        drawing = open_drawing(config)
        drift = None
        if config.router.drift.window:
            drift = DriftWatch(config.router.drift, lambda: service.in_force)
        followers = [tracing, recording, drawing, open_receipting(config), drift]
        self._telemetry = telemetry = Telemetry({"ingress": self._name}, followers)
        recorders = RecorderMetrics(self._ask_recorders)
        if observer is not None:
            telemetry.observed.now = lambda: observer.observations
        if recording is not None:
            telemetry.records.now = lambda: recording.counts
            telemetry.registry.register(recorders)
        shadows = ShadowMetrics(self._backend.shadow_stats)
        if drawing is not None:
            telemetry.registry.register(shadows)
        everyone = AllIngresses(telemetry.exposed, self._ask_ingresses, self._name)
        telemetry.show_instead(everyone)
        telemetry.registry.register(replicas)

        async def background() -> None:
            followed = [] if watch is None else [watch.keep(service)]
            if observer is not None and observed is not None:
                followed.append(observed.keep(observer))
            if (tightening := open_tightening(config)) is not None:
                followed.append(tightening.keep(service))
            await asyncio.gather(*followed)

        async def before_scrape() -> None:
            asked = [replicas.refresh(), everyone.refresh()]
            asked += [] if recording is None else [recorders.refresh()]
            asked += [] if drawing is None else [shadows.refresh()]
            await asyncio.gather(*asked)

        logger.info(
            Line(
                message="ingress ready",
                ingress=self._name,
                version=installed_version(),
                model=info.name,
                scales=info.ladder.scales,
                predictor=service.predictor_version,
                keys=config.router.access.keys != "none",
                traces=tracing is not None,
                records=config.records_store,
            )
        )
        app = build_app(
            service,
            telemetry,
            access=access,
            before_scrape=before_scrape,
            background=background,
            examples=EXAMPLES,
            drift=drift,
            records=None if self._dashboard is None else self._look,
            feedback=open_feedback(config),
        )
        settle()
        return app

    async def stop(self) -> int:
        """Lets nobody in any more; gives the number of requests that are still to be answered."""
        if self._admission is None:  # it never got so far
            return 0
        self._admission.stop()
        return self._admission.in_flight

    async def flush_records(self, timeout_s: float) -> bool:
        """Waits until no record is in this process's memory only; whether that came true."""
        if self._recording is None:
            return True
        return await asyncio.to_thread(self._recording.flush, timeout_s)

    async def exposed(self) -> tuple[str, list[Metric]]:
        """This replica's name and what it counts, for another one that is asked for all of it."""
        return self._name, [] if self._telemetry is None else [*self._telemetry.exposed.collect()]

    async def _look(self, looked: Looked) -> dict[str, Any]:
        assert self._dashboard is not None
        return dict(await self._dashboard.show.remote(looked))

    async def _ask_recorders(self) -> dict[str, RecorderStats]:
        if self._recorder is None:
            return {}
        return dict([await self._recorder.stats.remote()])

    async def _ask_ingresses(self) -> dict[str, Exposed]:
        ingresses = serve.get_deployment_handle(self._deployment, self._app)
        return dict(await ingresses.broadcast("exposed").results_async())


def open_tightening(config: Config) -> TighteningWatch | None:
    """What follows the labels' say on thresholds; None where none are made."""
    if not config.shadow_labels:
        return None
    url = config.records_redis_url
    assert url is not None
    return TighteningWatch(Board(url))


def open_recording(
    config: Config, ingress: str, observer: Observer | None = None
) -> Recording | None:
    """What keeps a record of every request of this ingress; None if none are kept."""
    if config.records_store is None:
        return None
    return Recording(
        open_stream(config, REQUESTS).append,
        ingress=ingress,
        buffer=config.records.buffer,
        questions=config.records.questions,
        observer=observer,
    )


def open_drawing(config: Config) -> Outbox | None:
    """What puts drawn requests into their queue; None if none are drawn."""
    if not config.shadow_labels:
        return None
    queue = open_queue(config)
    return Outbox(queue.append, order_of, is_drawn, buffer=DRAWN_BUFFER, what="shadow")
