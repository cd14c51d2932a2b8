"""What the builder asks of Ray Serve, read from the application it builds. Nothing is started."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest
import yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.deployment import Application, Deployment
from ray.serve.schema import ServeDeploySchema

from deploy.app import APP_NAME, ServeArgs, build
from deploy.config import PACKAGED, ConfigError, load


def deployments(application: Application) -> Mapping[str, Deployment]:
    ingress = application._bound_deployment
    _, models, *beside = ingress.init_args
    others = [argument._bound_deployment for argument in (*models.values(), *beside)]
    return {deployment.name: deployment for deployment in (ingress, *others)}


def test_local_is_one_of_each_without_a_gpu() -> None:
    config = load("local.yaml", {"cache.redis": "redis://localhost"})
    built = deployments(build(ServeArgs(config=config)))
    assert set(built) == {"Ingress", "M3Replica", "RecorderReplica", "Dashboard"}
    assert {d.num_replicas for d in built.values()} == {1}
    assert not built["M3Replica"].ray_actor_options.get("num_gpus")


def test_gpu_replicas_take_a_gpu_each_and_scale() -> None:
    config = load("gpu.yaml")
    built = deployments(build(ServeArgs(config="gpu.yaml")))
    model, scaling = built["M3Replica"], config.serve.replica.autoscaling
    assert scaling is not None
    assert model.ray_actor_options["num_gpus"] == 1
    autoscaling = model._deployment_config.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (
        scaling.min_replicas,
        scaling.max_replicas,
    )
    assert autoscaling.get_target_ongoing_requests() == config.model.max_batch
    assert built["Ingress"].num_replicas == config.serve.ingress.replicas


def test_a_replica_gets_one_batch_to_run_and_three_to_wait() -> None:
    model = deployments(build(ServeArgs(config=load("local.yaml", {"model.max_batch": 8}))))
    assert model["M3Replica"].max_ongoing_requests == 32
    named = load("local.yaml", {"serve.replica.max_ongoing_requests": 5})
    assert deployments(build(ServeArgs(config=named)))["M3Replica"].max_ongoing_requests == 5


@pytest.mark.parametrize("name", ["local.yaml", "gpu.yaml"])
def test_overload_is_refused_before_an_ingress_is_full(name: str) -> None:
    """Places at the model and in its queue run out first, then those in front of the ingress."""
    config = load(name)
    built = deployments(build(ServeArgs(config=name)))
    model, ingress = built["M3Replica"], built["Ingress"]
    scaling = config.serve.replica.autoscaling
    replicas = scaling.max_replicas if scaling else config.serve.replica.replicas
    places = replicas * model.max_ongoing_requests / ingress.num_replicas
    assert places + model.max_queued_requests < ingress.max_ongoing_requests
    assert ingress.max_queued_requests == config.serve.ingress.max_queued_requests > 0
    refusal = ingress._deployment_config.backpressure_config
    assert (refusal.status_code, refusal.retry_after_s) == (429, 1)


def test_serve_run_passes_its_arguments_typed() -> None:
    """`serve run deploy.app:build config=...` goes through this very function."""
    application = call_user_app_builder_with_args_if_necessary(build, {"config": "gpu.yaml"})
    assert deployments(application)["Ingress"].num_replicas == 2
    with pytest.raises(ValidationError, match="confg"):
        call_user_app_builder_with_args_if_necessary(build, {"confg": "gpu.yaml"})
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        call_user_app_builder_with_args_if_necessary(build, {"config": "nowhere.yaml"})


def test_nobody_starts_a_private_redis_for_the_builder(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "m3_router.deploy"):
        build(ServeArgs(config=load("local.yaml", {"cache.redis": "none"})))
        assert not caplog.records
        build(ServeArgs())
    assert "cache.redis is 'private'" in caplog.text


def test_a_door_that_is_open_to_the_network_is_told(caplog: pytest.LogCaptureFixture) -> None:
    changes = {"cache.redis": "none", "serve.host": "0.0.0.0"}
    with caplog.at_level(logging.WARNING, "m3_router.deploy"):
        build(ServeArgs(config=load("local.yaml", changes | {"router.access.keys": "keys.yaml"})))
        assert not caplog.records
        build(ServeArgs(config=load("local.yaml", changes)))
    assert "no API keys are configured" in caplog.text


@pytest.mark.parametrize("name", ["local", "gpu"])
def test_serve_config_files_say_the_same_as_ours(name: str) -> None:
    content = yaml.safe_load((PACKAGED / f"serve-{name}.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    [application] = schema.applications
    config = load(application.args["config"])
    assert application.import_path == "deploy.app:build"
    assert application.name == APP_NAME
    http = schema.http_options
    assert (http.host, http.port) == (config.serve.host, config.serve.port)
    assert http.request_timeout_s == config.http_timeout_s
