"""What `/readyz` says, part by part. Pure.

Only the model's replicas (and the end of this process) decide on readiness. Redis and the predictor
are told of for those who look: without them requests are still answered.
"""

from __future__ import annotations

from typing import Any

from m3_backend.errors import ServiceError
from m3_backend.messages import ModelInfo
from router.ports import Replicas


def components(
    replicas: Replicas | None,
    *,
    predictor: str | None,
    predictor_refused: bool,
    limits_breaker_open: bool,
) -> dict[str, Any]:
    """The state of every part.

    Args:
        replicas: None if none answers.
        predictor: its version.
        predictor_refused: a newer one is there and cannot be used.
    """
    alive = replicas or Replicas(answering=0)
    return {
        "replicas": {
            "status": "down" if replicas is None else "ok",
            "answering": alive.answering,
            "asked": alive.asked,
        },
        "predictor": {
            "status": "none" if predictor is None else "ok",
            "version": predictor,
            "refused": predictor_refused,
        },
        "features_redis": {"breaker": alive.redis},
        "limits_redis": {"breaker": "open" if limits_breaker_open else "closed"},
    }


def ready(info: ModelInfo, predictor: str | None, told: dict[str, Any]) -> dict[str, Any]:
    """The body while requests would be answered."""
    return {
        "status": "ready",
        "model": info.name,
        "scales": list(info.ladder.scales),
        "predictor": predictor,
        "components": told,
    }


def not_ready(cause: Exception, told: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the error while they would not."""
    reason = str(cause.code) if isinstance(cause, ServiceError) else "no_answer"
    return {"status": "not_ready", "reason": reason, "components": told}
