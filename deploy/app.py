"""The Ray Serve application: ingress replicas in front of model replicas.

serve run deploy.app:build config=deploy/configs/local.yaml
serve deploy deploy/configs/serve-gpu.yaml
"""

# No `from __future__ import annotations` here: Serve reads the builder's annotation as a class.

import logging
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from deploy.affinity import AffinityRouter
from deploy.config import OPEN_TO_ALL, Config, load
from deploy.dashboard import Dashboard
from deploy.ingress import Ingress
from deploy.recorder_replica import RecorderReplica
from deploy.replica import M3Replica

logger = logging.getLogger("m3_router.deploy")

APP_NAME = "m3-router"
MODEL_NAME = "M3Replica"
# Serve would write one line per request and hop; the router writes one per request itself.
LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")
# Serve tries twenty times to start a replica. On a cluster a node or a download may have been at
# fault; on one machine what failed once fails again.
START_ATTEMPTS, START_ATTEMPTS_LOCAL = 3, 1
DRAIN_LOOK_S = 0.2  # how often a replica that is being stopped looks whether it is done
# Serve replaces a replica that died when it asks for its health the next time; it would ask every
# ten seconds. (One that answers late is given half a minute all the same, and three chances.)
HEALTH_PERIOD_S = 2


class ServeArgs(BaseModel):
    """What `serve run deploy.app:build key=value ...` and `args:` in a Serve config file take.

    Args:
        config: a configuration file, or (in a Serve config file) its content.
    """

    model_config = ConfigDict(extra="forbid")

    config: str | Config = "local.yaml"


def build(args: ServeArgs) -> serve.Application:
    """The application that a configuration describes. Raises ConfigError."""
    config = args.config if isinstance(args.config, Config) else load(args.config)
    if config.cache.redis == "private":
        logger.warning(
            "cache.redis is 'private', but only `m3-router serve` starts one: features stay in "
            "each replica's memory. Name a URL to share them."
        )
    if config.is_open_to_all:
        logger.warning(OPEN_TO_ALL)
    return application(config)


def application(config: Config, model: type = M3Replica) -> serve.Application:
    """Binds the deployments; nothing runs yet.

    Args:
        model: of the replicas behind the ingress; another one has the same methods.
    """
    ingress = config.serve.ingress
    attempts = START_ATTEMPTS_LOCAL if config.ray.address == "local" else START_ATTEMPTS
    models = {
        name: _replicas(f"{MODEL_NAME}-{name}" if name else MODEL_NAME, pool, model, attempts)
        for name, pool in config.pools.items()
    }
    front = serve.deployment(
        num_replicas=ingress.replicas,
        ray_actor_options={"num_cpus": ingress.num_cpus},
        max_ongoing_requests=ingress.max_ongoing_requests,
        max_queued_requests=ingress.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_constructor_retry_count=attempts,
        logging_config=LOGGING,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
        graceful_shutdown_timeout_s=config.serve.drain_s,
    )(serve.ingress()(Ingress))
    if config.records_store is None:
        return front.bind(config, models)
    beside: dict[str, Any] = {
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0},  # they mostly wait
        "max_constructor_retry_count": attempts,
        "health_check_period_s": HEALTH_PERIOD_S,
        "logging_config": LOGGING,
    }
    recorder = serve.deployment(**beside)(RecorderReplica)
    dashboard = serve.deployment(**beside)(Dashboard)
    return front.bind(config, models, recorder.bind(config), dashboard.bind(config))


def _replicas(name: str, config: Config, model: type, attempts: int) -> serve.Application:
    """One deployment of the model, as a configuration without pools describes it."""
    replica = config.serve.replica
    scaling: dict[str, Any] = {"num_replicas": replica.replicas}
    if replica.autoscaling is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replica.autoscaling.min_replicas,
                max_replicas=replica.autoscaling.max_replicas,
                target_ongoing_requests=replica.autoscaling.target_ongoing_requests
                or config.model.max_batch,
            )
        }
    if replica.affinity:
        router: Any = f"{AffinityRouter.__module__}.{AffinityRouter.__name__}"
        scaling["request_router_config"] = RequestRouterConfig(request_router_class=router)
    deployment = serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": replica.num_cpus, "num_gpus": replica.num_gpus},
        max_ongoing_requests=config.places_per_replica,
        max_queued_requests=replica.max_queued_requests,
        max_constructor_retry_count=attempts,
        health_check_period_s=HEALTH_PERIOD_S,
        logging_config=LOGGING,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
        graceful_shutdown_timeout_s=config.serve.drain_s,
        **scaling,
    )(model)
    return deployment.bind(config)
