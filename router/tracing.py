"""Whether requests are traced, and the error where that is wanted and cannot be."""

from __future__ import annotations

from m3_backend.errors import ServiceError
from router.config import TelemetryConfig
from router.telemetry import Follower


class TracingError(ServiceError):
    """Traces are configured and cannot be sent. Nothing starts."""

    default_code = "tracing_unavailable"


def open_tracing(config: TelemetryConfig, instance: str = "") -> Follower | None:
    """What the configuration asks for; None if it asks for no traces.

    Args:
        instance: names this process in the traces.

    Raises:
        TracingError: OpenTelemetry's packages are not installed.
    """
    if config.otlp_endpoint is None:
        return None
    try:
        from router.spans import Tracing  # noqa: PLC0415 - optional packages
    except ImportError as error:
        raise TracingError(
            f"router.telemetry.otlp_endpoint is set, but {error.name} is not installed: "
            "pip install 'm3-router[otel]', or leave the key out."
        ) from None
    return Tracing(config.otlp_endpoint, config, instance)
