"""What an operator can set about the front door. Unknown keys are errors."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MIB = 1024 * 1024
# A name, whose last label begins with a letter: URLs with addresses are never fetched.
HOST_ENTRY = re.compile(r"(\*|(\*\.)?([a-z0-9_-]+\.)*[a-z][a-z0-9_-]*)(:[0-9]{1,5})?")
COLLECTOR = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
ORIGIN = re.compile(r"\*|https?://[a-z0-9.-]+(:[0-9]{1,5})?")


class RemoteImageConfig(BaseModel):
    """Which images are fetched from remote URLs: none, until a host is listed.

    The addresses of a host are checked when it is resolved, and the connection goes to the address
    that was checked; whatever is listed, nothing inside the operator's own network is reached
    unless `networks` names it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts to fetch from: `images.example.org`, `*.example.org` (any below it), "
        "`*` (any); with `:port` where it is not the scheme's own.",
    )
    networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="Networks that are not public and may be reached all the same, such as "
        "`10.20.0.0/16` of an internal store.",
    )
    allow_http: bool = Field(default=False, description="Also fetch without TLS.")
    timeout_s: float = Field(
        default=5.0, gt=0.0, description="For one image, from looking up its host to its last byte."
    )
    max_total_bytes: int = Field(
        default=20 * MIB, gt=0, description="Bytes of all fetched images of a request."
    )
    max_concurrent: int = Field(
        default=32, gt=0, description="Images being fetched at once; the others wait."
    )
    ca_file: str | None = Field(
        default=None, description="Certificates to trust instead of the usual ones; a PEM file."
    )

    @field_validator("hosts")
    @classmethod
    def _entries(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for entry in hosts:
            if not HOST_ENTRY.fullmatch(entry):
                raise ValueError(
                    f"{entry!r} is no host; write images.example.org, *.example.org or "
                    "store.internal:9000, in lower case and without a scheme"
                )
        return hosts


class ImageLimits(BaseModel):
    """What an uploaded picture may be. Checked on the file's header, before a pixel is decoded.

    `max_side` is there because the model pads a picture to a square: one of 50,000 × 10 pixels is
    small until then. `max_total_pixels` bounds the decoding that one request can ask for: a few
    kilobytes of file may hold any number of pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(default=10 * MIB, gt=0, description="Bytes of one encoded image.")
    max_pixels: int = Field(default=50_000_000, gt=0, description="Width × height of one image.")
    max_side: int = Field(
        default=12_000, gt=0, description="Pixels of the longer side of one image."
    )
    max_count: int = Field(default=16, gt=0, description="Images in one conversation.")
    max_total_pixels: int = Field(
        default=100_000_000, gt=0, description="Width × height of all images of a conversation."
    )
    remote: RemoteImageConfig = RemoteImageConfig()


class AccessConfig(BaseModel):
    """Who may use the service, and how much of it. The default asks nobody for a key.

    Limits are per key and minute, counted in the cache's Redis for all ingress replicas together; a
    key's own entry wins over them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: str = Field(
        default="none",
        description="Where the keys are: the path of a key file (`m3-router keys`), `env:NAME` for "
        "an environment variable that holds `name=key` pairs, or `none`.",
    )
    requests_per_minute: int | None = Field(
        default=None, gt=0, description="Requests of one key; unlimited if left out."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        gt=0,
        description="Work of one key: tokens of prompts, images included, and of answers.",
    )
    public_metrics: bool = Field(
        default=False, description="Show `/metrics` without a key, though keys are configured."
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins whose pages may call the API from a browser, such as "
        "`https://app.example.org`; `*` is any.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write https://app.example.org, or *")
        return origins

    @model_validator(mode="after")
    def _limits_need_keys(self) -> AccessConfig:
        if self.keys == "none" and (self.requests_per_minute or self.tokens_per_minute):
            raise ValueError("limits per key need `keys`")
        return self


class LoadConfig(BaseModel):
    """What happens as requests arrive faster than they can be answered.

    Pressure is the estimated wait of a new request in units of `max_wait_s`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_wait_s: float = Field(
        default=2.0,
        gt=0.0,
        description="Estimated wait from which interactive requests are refused (429).",
    )
    batch_at: float = Field(
        default=0.5, gt=0.0, le=1.0, description="Pressure from which batch requests are refused."
    )
    loosen_at: float = Field(
        default=0.25,
        ge=0.0,
        lt=1.0,
        description="Pressure from which `router.max_regret` is loosened, step by step.",
    )
    max_regret_ceiling: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="The loosest bound that load may put in the place of `router.max_regret`; one "
        "that is not above it turns loosening off.",
    )
    poll_s: float = Field(
        default=0.5, gt=0.0, description="How often the replicas are asked for their load."
    )


class TelemetryConfig(BaseModel):
    """What is told to others than the log and `/metrics`: traces, once a collector is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    otlp_endpoint: str | None = Field(
        default=None,
        description="Base URL of an OpenTelemetry collector that takes OTLP over HTTP, such as "
        "`http://collector:4318`; spans go to `/v1/traces` there. No traces without one.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Share of requests that are traced, of those whose client sends no "
        "`traceparent`; where it does, its own choice holds.",
    )
    service_name: str = Field(
        default="m3-router", min_length=1, description="`service.name` in traces."
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _base_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not COLLECTOR.fullmatch(endpoint):
            raise ValueError(f"{endpoint!r} is no base URL; write http://collector:4318")
        return endpoint


class ShadowConfig(BaseModel):
    """Which requests are answered at every scale once more, behind the callers' backs, so that
    predictors can learn from them and regret can be estimated. Needs records.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uniform_share: float = Field(
        default=0.02,
        ge=0.0,
        le=1.0,
        description="Share of requests that are drawn whatever was decided; 0 draws none.",
    )
    near: float = Field(
        default=0.02,
        ge=0.0,
        description="Difference to the second best scale, in success, below which a choice counts "
        "as close.",
    )
    near_share: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Share of close choices that are drawn besides."
    )
    budget: float = Field(
        default=0.05,
        gt=0.0,
        le=1.0,
        description="Share of a replica's time that labelling may take, while it has nobody to "
        "answer.",
    )
    queue_length: int = Field(
        default=1_000, ge=1, description="Drawn requests that may wait; beyond it none is taken."
    )
    max_age_s: float = Field(
        default=600.0,
        gt=0.0,
        description="Age from which a drawn request is given up; until then its text, not its "
        "image, is in Redis.",
    )
    max_tokens: int = Field(
        default=64, ge=1, description="Longest answer of the finest scale that is compared."
    )


class FeedbackConfig(BaseModel):
    """What callers may say of the answers they got (`POST /v1/feedback`). Needs records.

    What is remembered of a request for this lies in the Redis that records pass through, with a
    time to live, and holds no text: of answers their fingerprints, which tell only whether a given
    text is the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_s: float = Field(
        default=3_600.0,
        ge=0.0,
        description="Time after an answer within which feedback on it is taken, some 600 bytes of "
        "Redis for each; 0 takes none.",
    )
    answers_s: float = Field(
        default=0.0,
        ge=0.0,
        description="Time for which fingerprints of a shadow label's answers are held, so that a "
        "right answer makes it a label of correctness; replicas then also decode what coarser "
        "scales answer. 0 does neither.",
    )


class DriftConfig(BaseModel):
    """How traffic is compared with what the predictor in force was certified on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int = Field(
        default=2_000,
        ge=0,
        description="Images of the latest requests to compare; 0 compares none.",
    )
    warn_at: float = Field(
        default=0.25,
        gt=0.0,
        description="Population stability index from which a feature or the score counts as moved.",
    )
    every_s: float = Field(default=10.0, gt=0.0, description="How often they are compared.")


class RouterConfig(BaseModel):
    """The `router` section of the config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=20 * MIB, gt=0, description="Bytes of one request body.")
    images: ImageLimits = ImageLimits()
    access: AccessConfig = AccessConfig()
    load: LoadConfig = LoadConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    shadow: ShadowConfig = ShadowConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    drift: DriftConfig = DriftConfig()
    max_regret: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Regret bound of requests that do not set their own.",
    )
    max_tokens: int = Field(
        default=256, gt=0, description="Answer length of requests that do not set their own."
    )
    request_timeout_s: float = Field(
        default=120.0, gt=0.0, description="Deadline of a request, counted from its arrival."
    )
    max_attempts: int = Field(
        default=3,
        gt=0,
        description="Replicas that may be lost with one request of which nothing was sent yet, "
        "before it fails.",
    )
    max_route_batch: int = Field(
        default=64, gt=0, description="Requests in one body of `/v1/route/batch`."
    )
    planning_threads: int = Field(
        default=2, gt=0, description="Threads that parse requests and predict, off the event loop."
    )
