"""From a request that is over to its record. Pure."""

from __future__ import annotations

from typing import Any

from predictor.query_features import QuestionFeatures
from predictor.routing_records import Observed, RecordedImage, RoutingRecord
from router.stages import Stage
from router.trace import Trace

RECORDED = frozenset({"/v1/chat/completions", "/v1/route", "/v1/route/batch"})


def is_recorded(trace: Trace) -> bool:
    """Whether a request leaves a record: those that ask for a decision."""
    return trace.endpoint in RECORDED


def record_of(
    trace: Trace,
    ingress: str,
    asks: QuestionFeatures | None,
    *,
    question: bool = False,
    observed: Observed | None = None,
) -> RoutingRecord:
    """The record of a request.

    Args:
        ingress: the process that served it.
        asks: what its question asks for, if it was understood.
        question: also keep the text.
        observed: what a predictor that only watches would have decided.
    """
    record: dict[str, Any] = {
        "request_id": trace.request_id,
        "at": trace.wall_ns / 1e9,
        "endpoint": trace.endpoint,
        "ingress": ingress,
        "status": trace.status,
        "code": trace.code,
        "stream": trace.stream,
        "priority": trace.priority,
        "total_ms": _ms(trace.total_s if trace.total_s is not None else trace.elapsed_s()),
        "pressure": trace.pressure,
        "key": trace.caller.name,
        "retries": trace.retries,
        "degraded": trace.degraded,
        "predictor": trace.predictor,
        "images": _images(trace),
        "asks": asks,
        "observed": observed,
        "ttft_ms": _ms(trace.ttft_s),
        "routing_ms": _ms(trace.routing_s),
        "image_fetch_ms": _ms(trace.fetch_s) if trace.fetch_s else None,
    }
    stages = trace.stages.totals()
    record |= {f"{stage.value}_ms": _ms(stages.get(stage)) for stage in Stage}
    record |= {f"{phase}_ms": _ms(took_s) for phase, took_s in trace.phases().items()}
    record |= _asked(trace) | _decided(trace) | _answered(trace)
    if trace.draw is not None:
        record["draw_stratum"] = trace.draw.stratum
        record["draw_probability"] = trace.draw.probability
    if question and trace.evidence is not None:
        record["question"] = trace.evidence.question
    return RoutingRecord(**record)


def _images(trace: Trace) -> tuple[RecordedImage, ...]:
    if trace.evidence is None or trace.decision is None:
        return ()
    seen, choices = trace.evidence.images, trace.decision.images
    caches = (None,) * len(seen) if trace.started is None else trace.started.cache
    return tuple(
        RecordedImage(
            image=image.name,
            width=image.width,
            height=image.height,
            detail=image.case.detail,
            scale=choice.scale,
            reason=choice.reason.value,
            tokens=choice.tokens,
            p_sufficient=choice.p_sufficient,
            p_success=image.case.p_success,
            tokens_per_scale=image.case.tokens,
            cache=cache,
            features=image.features,
        )
        for image, choice, cache in zip(seen, choices, caches, strict=True)
    )


def _asked(trace: Trace) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    if trace.asked is not None:
        asked |= {"model": trace.asked.model, "finest_tokens": trace.asked.finest_tokens}
    if trace.evidence is not None:
        limits, info = trace.evidence.limits, trace.evidence.model
        own = limits.services_own or limits.scale is not None
        asked |= {
            "asked_scale": limits.scale,
            "asked_min_scale": limits.min_scale,
            "asked_max_scale": limits.max_scale,
            "asked_max_regret": None if own else limits.max_regret,
            "asked_latency_budget_ms": limits.latency_budget_ms,
            "served": info.name,
            "model_identity": info.identity,
            "processor": info.processor,
        }
    return asked


def _decided(trace: Trace) -> dict[str, Any]:
    if trace.decision is None:
        return {}
    return {
        "max_regret": trace.decision.max_regret,
        "loosened_from": trace.decision.loosened_from,
        "tightened_to": trace.decision.tightened_to,
        "bound": None if trace.evidence is None else trace.evidence.bound,
        "cost_ms": trace.decision.cost_ms,
    }


def _answered(trace: Trace) -> dict[str, Any]:
    answered: dict[str, Any] = {}
    if trace.started is not None:
        answered |= {
            "replica": trace.started.replica,
            "prompt_tokens": trace.started.prompt_tokens,
            "image_tokens": sum(trace.started.image_tokens),
        }
    if trace.finished is not None:
        answered |= {
            "completion_tokens": trace.finished.completion_tokens,
            "finish_reason": trace.finished.reason,
        }
    return answered


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
