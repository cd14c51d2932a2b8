"""What `/readyz` says, part by part. Pure.

Only the model's replicas (and the end of this process) decide on readiness. Redis, the predictor,
drift and a tightened policy are told of for those who look: requests are answered all the same.
"""

from __future__ import annotations

from typing import Any

from m3_backend.errors import ServiceError
from m3_backend.messages import ModelInfo
from router.drift import DriftState
from router.ports import Replicas


def components(
    replicas: Replicas | None,
    *,
    predictor: str | None,
    predictor_refused: bool,
    limits_breaker_open: bool,
    tightened_to: float | None,
    drift: DriftState | None,
) -> dict[str, Any]:
    """The state of every part.

    Args:
        replicas: None if none answers.
        predictor: its version.
        predictor_refused: a newer one is there and cannot be used.
        tightened_to: the bound whose price stands in for that of the service's own, if one does.
        drift: None where it is not watched.
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
        "policy": {
            "status": "ok" if tightened_to is None else "tightened",
            "tightened_to": tightened_to,
        },
        "drift": _drift(drift),
        "features_redis": {"breaker": alive.redis},
        "limits_redis": {"breaker": "open" if limits_breaker_open else "closed"},
    }


def _drift(state: DriftState | None) -> dict[str, Any]:
    if state is None or not state.shifts:
        return {"status": "unknown", "moved": {}}
    moved = {
        kind: {"name": shift.name, "psi": round(shift.psi, 3)}
        for kind, shift in state.shifts.items()
    }
    return {"status": "warning" if state.warning else "ok", "moved": moved}


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
