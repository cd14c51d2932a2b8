"""The log's one line of a request: JSON, without the question, the answer or the image."""

from __future__ import annotations

import json
import logging
from typing import Any

from router.trace import Trace

requests_log = logging.getLogger("m3_router.requests")


class Line(dict[str, Any]):
    """What one line of the log says, by field. As text it is one JSON object."""

    def __str__(self) -> str:
        return json.dumps(self, separators=(",", ":"), default=str)


def log(trace: Trace) -> None:
    """Writes the line of a request that is over."""
    requests_log.info(line_of(trace))


def line_of(trace: Trace) -> Line:
    """Fields that this request did not get to are left out."""
    fields: dict[str, object] = {
        "request_id": trace.request_id,
        "endpoint": trace.endpoint,
        "status": trace.status,
        "code": trace.code,
        "stream": trace.stream,
        "total_ms": _ms(trace.elapsed_s()),
    }
    if trace.trace_id is not None:
        fields["trace_id"] = trace.trace_id
    if trace.caller.name is not None:
        fields["key"] = trace.caller.name
    if trace.asked is not None:
        fields["model"] = trace.asked.model
    if trace.fetch_s:
        fields["image_fetch_ms"] = _ms(trace.fetch_s)
    if trace.decision is not None:
        fields |= {
            "scale": list(trace.decision.scales),
            "reason": [image.reason for image in trace.decision.images],
            "p_sufficient": [image.p_sufficient for image in trace.decision.images],
            "max_regret": trace.decision.max_regret,
            "loosened_from": trace.decision.loosened_from,
            "tightened_to": trace.decision.tightened_to,
            "cost_ms": round(trace.decision.cost_ms, 3),
            "predictor": trace.predictor,
        }
    if trace.retries:
        fields["retries"] = trace.retries
    if trace.routing_s is not None:
        fields["routing_ms"] = _ms(trace.routing_s)
    if totals := trace.stages.totals():
        fields["stages_ms"] = {stage.value: _ms(took_s) for stage, took_s in totals.items()}
    if trace.started is not None:
        fields |= {
            "cache": trace.started.cache,
            "degraded": trace.degraded,
            "replica": trace.started.replica,
            "prompt_tokens": trace.started.prompt_tokens,
            "image_tokens": sum(trace.started.image_tokens),
            "image_tokens_saved": trace.tokens_saved,
            "queue_ms": trace.started.queue_ms,
            "fetch_ms": trace.started.fetch_ms,
            "encode_ms": trace.started.encode_ms,
        }
    if trace.ttft_s is not None:
        fields["ttft_ms"] = _ms(trace.ttft_s)
    if trace.finished is not None:
        fields |= {
            "completion_tokens": trace.finished.completion_tokens,
            "finish_reason": trace.finished.reason,
            "prefill_ms": trace.finished.prefill_ms,
            "decode_ms": trace.finished.decode_ms,
        }
    return Line(fields)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
