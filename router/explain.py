"""How a decision is told: one Explanation, as headers and as the `m3` object of the body."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m3_backend.messages import Finished, Started
from router.policy import Decision
from router.schemas import Explanation, Timings

REQUEST_ID_HEADER = "x-m3-request-id"
VOID = "void"
NONE = "none"


def explain(
    decision: Decision,
    *,
    request_id: str,
    predictor: str | None,
    routing_ms: float,
    degraded: Sequence[str] = (),
    started: Started | None = None,
    finished: Finished | None = None,
) -> Explanation:
    """What is known about the decision so far; a later event adds to it."""
    images = decision.images
    explanation = Explanation(
        request_id=request_id,
        scale=[image.scale for image in images],
        reason=[image.reason.value for image in images],
        p_sufficient=[image.p_sufficient for image in images],
        max_regret=decision.max_regret,
        loosened_from=decision.loosened_from,
        tightened_to=decision.tightened_to,
        predictor=predictor,
        cost_ms=decision.cost_ms,
        routing_ms=routing_ms,
        degraded=list(degraded),
        notes=[note.value for note in decision.notes],
    )
    if started is not None:
        explanation.cache = list(started.cache)
    if started is not None and finished is not None:
        explanation.timings_ms = Timings(
            queue=started.queue_ms,
            fetch=started.fetch_ms,
            encode=started.encode_ms,
            prefill=finished.prefill_ms,
            decode=finished.decode_ms,
        )
    return explanation


def headers(explanation: Explanation) -> dict[str, str]:
    """The `x-m3-*` response headers. Values of several images are comma-separated, in order.

    `x-m3-cache` is there once a replica has started, `x-m3-degraded` when something was down,
    `x-m3-loosened-from` when load has loosened the service's own bound, `x-m3-tightened-to` when
    live labels have tightened the policy. The request id is not among them: every response has it,
    also those without a decision.
    """
    fields = {
        "x-m3-scale": _listed(map(str, explanation.scale)),
        "x-m3-reason": _listed(explanation.reason),
        "x-m3-p-sufficient": _listed(
            NONE if p is None else f"{p:.4f}" for p in explanation.p_sufficient
        ),
        "x-m3-max-regret": VOID
        if explanation.max_regret is None
        else f"{explanation.max_regret:g}",
        "x-m3-predictor": explanation.predictor or NONE,
        "x-m3-routing-ms": f"{explanation.routing_ms:.3f}",
        "x-m3-cost-ms": f"{explanation.cost_ms:.3f}",
    }
    if explanation.cache is not None:
        fields["x-m3-cache"] = _listed(explanation.cache)
    if explanation.loosened_from is not None:
        fields["x-m3-loosened-from"] = f"{explanation.loosened_from:g}"
    if explanation.tightened_to is not None:
        fields["x-m3-tightened-to"] = f"{explanation.tightened_to:g}"
    if explanation.degraded:
        fields["x-m3-degraded"] = _listed(explanation.degraded)
    return fields


def _listed(values: Iterable[str]) -> str:
    return ",".join(values)
