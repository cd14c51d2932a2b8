"""The Grafana dashboard as code: `python -m deploy.grafana_dashboard` writes deploy/grafana/.

Importable unchanged: the data source is a variable, every panel asks the metrics that the service
exports itself and none of the recording rules.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana" / "m3-router.json"
CHAT = 'endpoint="/v1/chat/completions"'
WIDE, HIGH = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Args:
        asks: (expression, legend) pairs.
        width: of 24 columns.
    """

    title: str
    asks: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    stack: bool = False
    says: str = ""


def rate(metric: str, labels: str = "") -> str:
    return (
        f"rate({metric}{{{labels}}}[$__rate_interval])"
        if labels
        else (f"rate({metric}[$__rate_interval])")
    )


def quantiles(metric: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    inner = f"sum by (le) ({rate(f'{metric}_bucket', labels)})"
    return tuple((f"histogram_quantile({q}, {inner})", f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


IMAGE, OK = 'kind="image"', CHAT + ',code="ok"'
SAVED = f"sum({rate('m3_image_tokens_saved_total')})"
SPENT = f"sum({rate('m3_tokens_total', IMAGE)})"
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            Panel(
                "Chat requests",
                ((f"sum({rate('m3_requests_total', CHAT)})", ""),),
                "reqps",
                4,
                "stat",
            ),
            Panel(
                "Answered",
                (
                    (
                        f"sum({rate('m3_requests_total', OK)})"
                        f" / sum({rate('m3_requests_total', CHAT)})",
                        "",
                    ),
                ),
                "percentunit",
                4,
                "stat",
            ),
            Panel(
                "Visual tokens saved",
                ((f"{SAVED} / ({SAVED} + {SPENT})", ""),),
                "percentunit",
                4,
                "stat",
                says="Of the image tokens that the finest scale would have taken.",
            ),
            Panel(
                "First token, p95",
                (quantiles("m3_time_to_first_token_seconds")[1],),
                "s",
                4,
                "stat",
            ),
            Panel(
                "Pressure",
                (("max(m3_pressure)", ""),),
                "none",
                4,
                "stat",
                says="Estimated wait in units of router.load.max_wait_s; 1 refuses.",
            ),
            Panel("Replicas", (("count(m3_replica_slots)", ""),), "none", 4, "stat"),
        ),
    ),
    (
        "Scales and tokens",
        (
            Panel(
                "Decisions by scale",
                ((f"sum by (scale) ({rate('m3_decisions_total', CHAT)})", "{{scale}}"),),
                "reqps",
                stack=True,
            ),
            Panel(
                "Decisions by reason",
                ((f"sum by (reason) ({rate('m3_decisions_total', CHAT)})", "{{reason}}"),),
                "reqps",
                stack=True,
            ),
            Panel("Image tokens a second", ((SPENT, "spent"), (SAVED, "saved")), stack=True),
        ),
    ),
    (
        "Latency",
        (
            Panel("Time to the first token", quantiles("m3_time_to_first_token_seconds"), "s"),
            Panel("Whole request", quantiles("m3_request_seconds", CHAT), "s"),
            Panel(
                "Behind the router, mean by phase",
                (
                    (
                        f"sum by (phase) ({rate('m3_phase_seconds_sum')})"
                        f" / sum by (phase) ({rate('m3_phase_seconds_count')})",
                        "{{phase}}",
                    ),
                ),
                "s",
                stack=True,
            ),
            Panel("The router's own work", quantiles("m3_routing_seconds"), "s"),
            Panel(
                "Its stages, mean",
                (
                    (
                        f"sum by (stage) ({rate('m3_routing_stage_seconds_sum')})"
                        f" / sum by (stage) ({rate('m3_routing_stage_seconds_count')})",
                        "{{stage}}",
                    ),
                ),
                "s",
                stack=True,
            ),
            Panel("Time per output token", quantiles("m3_time_per_output_token_seconds"), "s"),
        ),
    ),
    (
        "Load and faults",
        (
            Panel(
                "Requests by outcome",
                ((f"sum by (code) ({rate('m3_requests_total', CHAT)})", "{{code}}"),),
                "reqps",
                stack=True,
            ),
            Panel("Pressure", (("m3_pressure", "{{ingress}}"),), "none"),
            Panel(
                "Batch and line",
                (
                    ("sum(m3_replica_running_requests)", "in the batch"),
                    ("sum(m3_replica_waiting_requests)", "waiting"),
                    ("sum(m3_replica_slots)", "places"),
                ),
                "none",
            ),
            Panel("Event loop, p99 late", (quantiles("m3_event_loop_lag_seconds")[2],), "s"),
            Panel(
                "Refused and loosened",
                (
                    (
                        f"sum by (priority) ({rate('m3_shed_requests_total')})",
                        "refused, {{priority}}",
                    ),
                    (f"sum({rate('m3_loosened_requests_total')})", "bound loosened"),
                ),
                "reqps",
            ),
            Panel(
                "Parts that are down",
                (
                    ("max(m3_redis_breaker_open)", "Redis, features"),
                    ("max(m3_limits_redis_breaker_open)", "Redis, limits"),
                    ("max(m3_predictor_refused)", "predictor refused"),
                    ("max(m3_recorder_failing)", "recorder"),
                ),
                "none",
            ),
        ),
    ),
    (
        "Cache and records",
        (
            Panel(
                "Pictures by where their features came from",
                ((f"sum by (cache) ({rate('m3_image_features_total')})", "{{cache}}"),),
                "reqps",
                stack=True,
            ),
            Panel("Features in memory", (("sum(m3_feature_cache_bytes)", "bytes"),), "bytes"),
            Panel(
                "Shadow labels",
                ((f"sum by (outcome) ({rate('m3_shadow_draws_total')})", "{{outcome}}"),),
                "reqps",
                stack=True,
            ),
            Panel(
                "Which predictor decides, by ingress replicas",
                (("count by (version) (m3_predictor_info)", "{{version}}"),),
                "none",
                stack=True,
            ),
            Panel(
                "KV memory",
                (
                    ("sum(m3_kv_held_tokens)", "in use"),
                    ("sum(m3_kv_idle_tokens)", "kept prefixes"),
                    ("sum(m3_kv_tokens)", "there is"),
                ),
            ),
            Panel(
                "Records",
                (
                    (f"sum by (outcome) ({rate('m3_records_total')})", "{{outcome}}"),
                    ("sum(m3_records_stream_length)", "on the stream"),
                ),
                "short",
            ),
        ),
    ),
    (
        "What callers and another predictor say",
        (
            Panel(
                "Judged answers that were right, by scale",
                (
                    (
                        'sum by (scale) (increase(m3_feedback_total{verdict="right"}[1d])) / '
                        "sum by (scale) (increase(m3_feedback_total[1d]))",
                        "{{scale}}",
                    ),
                ),
                "percentunit",
            ),
            Panel(
                "Images by what the predictor that watches would have chosen",
                ((f"sum by (observed) ({rate('m3_observed_images_total')})", "{{observed}}"),),
                "reqps",
                stack=True,
            ),
        ),
    ),
    (
        "Drift and tightening",
        (
            Panel(
                "Thresholds and tightening",
                (
                    ("m3_threshold_regret_low", "at least, {{predictor}} at {{bound}}"),
                    ("max(m3_tightened)", "tightened"),
                ),
                "none",
            ),
            Panel(
                "Drift",
                (
                    ("max by (kind) (m3_drift_psi)", "{{kind}}"),
                    ("max(m3_drift_warning)", "warning"),
                ),
                "none",
                says="Largest population stability index by kind; 0.25 is a shift.",
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(_placed({"type": "row", "title": title, "collapsed": False}, 0, top, WIDE, 1))
        top, left = top + 1, 0
        for panel in row:
            high = HIGH // 2 if panel.kind == "stat" else HIGH
            if left + panel.width > WIDE:
                top, left = top + high, 0
            panels.append(_placed(_panel(panel), left, top, panel.width, high))
            left += panel.width
        top += high
    for number, placed in enumerate(panels, start=1):
        placed["id"] = number
    return {
        "title": "m3-router",
        "uid": "m3-router",
        "tags": ["m3-router"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": panels,
    }


def expressions(rate_interval: str = "$__rate_interval") -> list[str]:
    """What all panels ask, with Grafana's variable replaced."""
    asks = [ask for _, row in ROWS for panel in row for ask, _ in panel.asks]
    return [ask.replace("$__rate_interval", rate_interval) for ask in asks]


def _placed(panel: dict[str, Any], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return panel | {"gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _panel(panel: Panel) -> dict[str, Any]:
    lines: dict[str, Any] = {
        "lineWidth": 1,
        "fillOpacity": 60 if panel.stack else 8,
        "showPoints": "never",
    }
    lines["stacking"] = {"mode": "normal" if panel.stack else "none"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {} if panel.kind == "stat" else lines,
            },
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": ask, "legendFormat": legend}
            for at, (ask, legend) in enumerate(panel.asks)
        ],
    }


def main() -> None:
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
