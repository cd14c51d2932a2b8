"""One configuration for the whole system, composed of the rooms' own. Unknown keys are errors.

A file is YAML; every key is optional and keeps the default written here, once. Values given on the
command line or to a Serve builder win over the file.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from router.config import RouterConfig

PACKAGED = Path(__file__).parent / "configs"
OPEN_TO_ALL = (
    "Everybody who reaches this port may use the service: no API keys are configured. "
    "`m3-router keys new` makes one; router.access.keys names the file."
)


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the file, the key and the remedy."""


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Which checkpoint a replica serves and how it runs it.

    Args:
        checkpoint: "m3-tiny", a folder, or a repository name on the Hugging Face hub.
        dtype: "auto" is the one the checkpoint was saved in, where the device has it.
        device: "auto" is CUDA if the replica was given a GPU, else the CPU.
        threads: CPU threads of one operation; None takes `serve.replica.num_cpus`. With fewer, as
            many pictures are encoded at once as there are CPUs for: more requests per second, each
            of them a little later.
        max_batch: requests in the running batch at once, if their tokens fit into KV memory.
        max_context: tokens per request, prompt and answer; None takes the checkpoint's own bound.
        kv_tokens: tokens of KV memory, taken at the start; requests are admitted by what they need
            of it, and what is left keeps the images of the last questions. None is room for
            `max_batch` requests of `max_context` tokens.
        prefill_budget: prompt tokens taken up per step of the batch; None is as many as the device
            prefills in 25 ms.
    """

    checkpoint: str = "m3-tiny"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    max_batch: int = Field(default=16, ge=1)
    max_context: int | None = Field(default=None, ge=64)
    kv_tokens: int | None = Field(default=None, ge=64)
    prefill_budget: int | None = Field(default=None, ge=1)


class CacheConfig(Section):
    """The feature cache: memory inside every replica, and Redis shared by all of them.

    Args:
        memory: bytes of features kept in each replica (a number, or a size such as 256MiB).
        redis: "private" starts a Redis of our own beside a local cluster; "none" does without; else
            a URL (redis://, rediss:// or unix://). That Redis should run `maxmemory-policy
            volatile-lfu`.
        ttl_s: seconds a stored feature lives in Redis.
        secret: signs what is stored, for a Redis that others can write to; up to 64 bytes, the same
            for all replicas.
        private_memory: `maxmemory` of the private Redis.
        storage: "exact" keeps features as they are; "int8" in eight bits a value, about half the
            bytes of 16-bit ones, which changes some answers (`python -m benchmarks int8` tells how
            many).
    """

    memory: ByteSize = Field(default=ByteSize(256 * 2**20), ge=0)
    redis: str = "private"
    ttl_s: int = Field(default=24 * 3600, ge=1)
    secret: SecretStr = Field(default=SecretStr(""), max_length=64)
    private_memory: ByteSize = Field(default=ByteSize(256 * 2**20), ge=2**20)
    storage: Literal["exact", "int8"] = "exact"


class RecordsConfig(Section):
    """Records of requests: what the dashboard shows and predictors learn from (docs/records.md).

    Args:
        store: where they are kept: "auto" is a folder in this user's state directory where Ray is
            local, and nowhere on a cluster; "none" keeps none; else an absolute folder that the
            recorder's node has, or a URL that fsspec knows (s3://bucket/records).
        redis: the Redis that they pass through: "cache" takes the cache's; else a URL. Acknowledged
            records are as safe there as its own persistence makes them; the private one has none.
        stream_length: records that may wait there for the recorder; beyond it none is taken.
        buffer: records that an ingress holds while Redis takes none; beyond it they are dropped.
        every_s: how often the recorder writes a file.
        batch: most records in a file.
        retention_days: whole days that are kept; null keeps all.
        questions: also keep the text of questions.
    """

    store: str = "auto"
    redis: str = "cache"
    stream_length: int = Field(default=20_000, ge=1)
    buffer: int = Field(default=2_000, ge=1)
    every_s: float = Field(default=5.0, gt=0)
    batch: int = Field(default=5_000, ge=1)
    retention_days: int | None = Field(default=90, ge=1)
    questions: bool = False


class DashboardConfig(Section):
    """What the page at /dashboard shows beside the playground, where records are kept.

    Args:
        price_per_replica_hour: what one model replica costs in an hour, for figures in money; null
            shows tokens and replica time only.
        currency: of that price, as ISO 4217 names it.
    """

    price_per_replica_hour: float | None = Field(default=None, gt=0)
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")


class IngressConfig(Section):
    """The replicas that speak HTTP, decide the scale and explain it.

    Args:
        replicas: how many; each is one Python process, so more than one uses more than one core.
        num_cpus: what each reserves in Ray's books.
        max_ongoing_requests: requests in one ingress replica at once. They mostly wait for the
            model, so this is a bound on memory (images are held while they wait), not on work.
        max_queued_requests: requests that may wait in one HTTP proxy for a place in an ingress
            replica; beyond it Ray itself answers 429.
    """

    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1, ge=0)
    max_ongoing_requests: int = Field(default=512, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)


class Autoscaling(Section):
    """Bounds between which Ray Serve moves the number of model replicas.

    Args:
        min_replicas, max_replicas: the bounds.
        target_ongoing_requests: requests per replica that it aims for; None takes
            `model.max_batch`, a full batch.
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(ge=1)
    target_ongoing_requests: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def in_order(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self


class ReplicaConfig(Section):
    """The replicas that hold the model.

    Args:
        replicas: how many, unless `autoscaling` says it.
        autoscaling: lets Ray Serve move their number; None keeps it.
        affinity: send questions about a picture to the replica that had it before, unless another
            one could answer sooner, encoding it anew; without it, Ray's own choice by the number of
            requests.
        num_cpus, num_gpus: what each reserves in Ray's books; num_gpus also makes that many visible
            to it.
        max_ongoing_requests: requests sent to one replica at once; None takes four times
            `model.max_batch`: one batch that runs and three that wait, so that a place in the batch
            is refilled at the very next step, and not after a round trip through Ray, and so that
            requests wait where priorities and deadlines are looked at. (Ray's own default, 5, would
            leave the batch half empty.)
        max_queued_requests: requests that may wait in one ingress replica for a place; beyond it
            the answer is 429. An ingress replica must hold more than these and its share of the
            requests at the model together, or none is ever refused.
    """

    replicas: int = Field(default=1, ge=1)
    autoscaling: Autoscaling | None = None
    affinity: bool = True
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)


class PoolConfig(ReplicaConfig):
    """Replicas of their own for some of the model's scales.

    Args:
        scales: which; all pools together serve every scale of the model, and a scale may be in
            several.
        max_batch, kv_tokens: as `model.max_batch` and `model.kv_tokens`, which null takes.
    """

    scales: tuple[int, ...] = Field(min_length=1)
    max_batch: int | None = Field(default=None, ge=1)
    kv_tokens: int | None = Field(default=None, ge=64)

    @model_validator(mode="after")
    def each_scale_once(self) -> PoolConfig:
        if len(set(self.scales)) < len(self.scales):
            raise ValueError("scales: one of them stands there twice")
        return self


PoolName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]


class ServeConfig(Section):
    """Where the service listens and how it is spread out.

    Args:
        host, port: of the HTTP server. The default is reachable from this machine only.
        drain_s: time that requests which were let in have to end when the service or a replica is
            stopped; those that need more are lost.
        pools: replicas by the scales that they serve, by name: `coarse: {scales: [1, 9, 36],
            replicas: 4}` and so on. Every pool has the keys of `serve.replica`, with its defaults,
            and those below; `serve.replica` itself is not used then. Empty, all replicas serve all
            scales.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    drain_s: float = Field(default=30.0, ge=0)
    ingress: IngressConfig = IngressConfig()
    replica: ReplicaConfig = ReplicaConfig()
    pools: dict[PoolName, PoolConfig] = {}


class RayConfig(Section):
    """Which Ray cluster to use.

    Args:
        address: "local" starts one on this machine and stops it again; else what `ray.init` takes
            ("auto", "host:port").
        num_cpus, num_gpus: what the local cluster believes it has; None lets Ray look. Processes,
            not cores, are what a small machine shares, so the local default of 8 CPUs is on
            purpose.
    """

    address: str = "local"
    num_cpus: float | None = Field(default=8, ge=1)
    num_gpus: float | None = Field(default=None, ge=0)


class Config(Section):
    """Everything that can be configured.

    Args:
        predictor: "auto" takes the one that serves in this user's registry (where Ray is local),
            else the artefact that ships with the checkpoint, if there is one; "none" does without
            (every request goes to the finest scale); else the folder of a registry or of an
            artefact, which must be sound and made for this very checkpoint, or nothing starts.
        observe: a predictor that watches beside the one that serves, where records are kept: what
            it would have decided is recorded, and not used. "auto" is the version that `m3-router
            predictors observe` names in the registry of `predictor`, "none" is none; else a version
            of that registry, or the folder of an artefact. It may change while the service runs.
        log_level: from which level on the log is written; "info" is one line per request, "debug"
            also quotes what an unforeseen exception said, which may hold what was asked.
    """

    model: ModelConfig = ModelConfig()
    predictor: str = "auto"
    observe: str = "auto"
    cache: CacheConfig = CacheConfig()
    records: RecordsConfig = RecordsConfig()
    dashboard: DashboardConfig = DashboardConfig()
    router: RouterConfig = RouterConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def private_redis_is_local(self) -> Config:
        if self.cache.redis == "private" and self.ray.address != "local":
            raise ValueError(
                "cache.redis: a private Redis is for ray.address 'local'; give a URL that all "
                "nodes reach, or 'none'"
            )
        return self

    @model_validator(mode="after")
    def records_have_a_stream(self) -> Config:
        kept = self.records.store not in ("auto", "none")
        if kept and self.records.redis == "cache" and self.cache.redis == "none":
            raise ValueError(
                "records.redis: records pass through a Redis; name one, or cache.redis, or set "
                "records.store to 'none'"
            )
        return self

    @model_validator(mode="after")
    def overload_is_refused(self) -> Config:
        ingress, share, queued = self.serve.ingress, 0, 0
        for pool in self.pools.values():
            replica = pool.serve.replica
            most = replica.autoscaling.max_replicas if replica.autoscaling else replica.replicas
            share += math.ceil(most * pool.places_per_replica / ingress.replicas)
            queued += replica.max_queued_requests
        if ingress.max_ongoing_requests <= share + queued:
            raise ValueError(
                f"serve.ingress.max_ongoing_requests: must be above {share + queued}, or overload "
                f"is never refused: {share} places at the model for each ingress replica, and "
                f"max_queued_requests of the replicas ({queued})"
            )
        return self

    @property
    def pools(self) -> dict[str, Config]:
        """What the replicas of each pool go by, as if they were all there are; without pools one,
        named "". Only pools that serve the finest scale of theirs make shadow labels: the others'
        devices may have no room for it.
        """
        if not self.serve.pools:
            return {"": self}
        finest = max(max(pool.scales) for pool in self.serve.pools.values())
        return {
            name: self._for_pool(pool, labels=finest in pool.scales)
            for name, pool in self.serve.pools.items()
        }

    def _for_pool(self, pool: PoolConfig, *, labels: bool) -> Config:
        of_model = {
            key: value
            for key in ("max_batch", "kv_tokens")
            if (value := getattr(pool, key)) is not None
        }
        replica = ReplicaConfig.model_construct(
            **{key: getattr(pool, key) for key in ReplicaConfig.model_fields}
        )
        router = self.router
        if not labels:
            shadow = router.shadow.model_copy(update={"uniform_share": 0.0})
            router = router.model_copy(update={"shadow": shadow})
        serve = self.serve.model_copy(update={"replica": replica, "pools": {}})
        model = self.model.model_copy(update=of_model)
        return self.model_copy(update={"serve": serve, "model": model, "router": router})

    @property
    def places_per_replica(self) -> int:
        """Requests sent to one model replica at once."""
        return self.serve.replica.max_ongoing_requests or 4 * self.model.max_batch

    @property
    def threads(self) -> int:
        """CPU threads of one operation of a model replica."""
        return self.model.threads or max(1, int(self.serve.replica.num_cpus))

    @property
    def towers(self) -> int:
        """Pictures that a model replica encodes at once on a CPU."""
        return max(1, int(self.serve.replica.num_cpus) // self.threads)

    @property
    def http_timeout_s(self) -> float:
        """Seconds that Serve's HTTP proxy gives a request.

        Requests have their own, earlier deadline; this is for what gets stuck before it is read.
        """
        return self.router.request_timeout_s + 10

    @property
    def is_open_to_all(self) -> bool:
        """Whether others than this machine's users may use the service without a key."""
        return self.router.access.keys == "none" and not _is_loopback(self.serve.host)

    @property
    def redis_url(self) -> str | None:
        """The Redis that replicas share, if there is one. (A private one has its URL put here.)"""
        return None if self.cache.redis in ("private", "none") else self.cache.redis

    @property
    def records_redis_url(self) -> str | None:
        """The Redis that records pass through, if there is one."""
        return self.redis_url if self.records.redis == "cache" else self.records.redis

    @property
    def records_store(self) -> str | None:
        """The folder or URL that records are kept in; None if none are."""
        return None if self.records_redis_url is None else self.records_root

    @property
    def records_root(self) -> str | None:
        """The same, of a service with a Redis, which may not be there yet."""
        if self.records.store == "none":
            return None
        if self.records.store == "auto":
            return str(state_folder() / "records") if self.ray.address == "local" else None
        return self.records.store

    @property
    def shadow_labels(self) -> bool:
        """Whether requests are drawn for shadow labels."""
        return self.records_store is not None and self.router.shadow.uniform_share > 0

    @property
    def takes_feedback(self) -> bool:
        """Whether callers may say what they think of answers."""
        return self.records_store is not None and self.router.feedback.window_s > 0

    def with_changes(self, changes: Mapping[str, Any]) -> Config:
        """A copy with dotted keys replaced, e.g. {"serve.port": 8001}. Raises ConfigError."""
        return parse(_merge(self.model_dump(), changes), source="the command line")


def state_folder() -> Path:
    """Where this user's own service keeps what outlives it."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local/state") / "m3-router"


def load(name: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Reads a configuration file and applies `changes` (dotted keys) on top.

    Args:
        name: a path, or the name of a packaged file ("local.yaml", "gpu.yaml").

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value out of range.
    """
    path = Path(name)
    if not path.is_file() and (PACKAGED / path.name).is_file() and path.parent == Path():
        path = PACKAGED / path.name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = ", ".join(sorted(p.name for p in PACKAGED.glob("[!s]*.yaml")))
        raise ConfigError(
            f"{name}: cannot be read ({error.strerror}). Give a path or one of {shipped}."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise ConfigError(f"{path}: expected sections such as `model:` and `serve:` at the top.")
    return parse(_merge(content or {}, changes or {}), source=str(path))


def parse(content: Mapping[str, Any], source: str) -> Config:
    """Validates a nested mapping; `source` opens every line of the error message."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        lines = [f"{source}: {_explain(e['loc'], e['type'], e['msg'])}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _merge(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with dotted keys replaced; neither argument is changed."""
    merged = dict(content)
    for dotted, value in changes.items():
        head, _, rest = dotted.partition(".")
        merged[head] = _merge(merged.get(head) or {}, {rest: value}) if rest else value
    return merged


def _explain(location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind != "extra_forbidden":
        said = message.removeprefix("Value error, ")
        return f"{key}: {said}." if key else f"{said}."
    known = _fields_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}."
    return f"{key}: unknown key; {hint}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` knows."""
    section: type[BaseModel] = Config
    for part in location:
        if str(part) not in section.model_fields:  # a name that somebody gave
            continue
        annotation = section.model_fields[str(part)].annotation
        candidates = (annotation, *get_args(annotation))
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return sorted(section.model_fields)
