"""The reference tables of docs/operations.md, read off the code: every key and every metric.

python -m deploy.reference    # writes them into the page again (`make docs`)
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo

from deploy.config import Config
from deploy.metrics import RecorderMetrics, ReplicaMetrics, ShadowMetrics
from router.telemetry import Telemetry

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
MIB = 1024 * 1024
NAME = "NAME"  # stands for one that the operator gives


@dataclass(frozen=True)
class Key:
    """One thing that can be set: its dotted name, its default in Markdown, what it means."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Described:
    """One metric as Prometheus knows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[Key]:
    """Every key of a section and of the sections in it, in the order of the code."""
    documented = _arguments(section)
    for name, field in section.model_fields.items():
        if name not in documented and field.description is None and prefix.endswith(f"{NAME}."):
            continue  # as in the section that it is a kind of
        inner = _section_of(field)
        if inner is None or not isinstance(field.default, BaseModel):
            meaning = field.description or documented.get(name, "")
            yield Key(prefix + name, _default(field), _told(meaning, field))
        if inner is not None:
            named = f"{NAME}." if get_origin(field.annotation) is dict else ""
            yield from all_keys(inner, f"{prefix}{name}.{named}")


def all_metrics() -> Iterator[Described]:
    """Every metric of an ingress, then those of the other deployments."""

    async def nobody() -> Mapping[str, Any]:
        return {}

    # prometheus_client tells the labels of a metric without series nowhere else.
    own = Telemetry().own._collector_to_names
    for collector in (*own, ReplicaMetrics(nobody), RecorderMetrics(nobody), ShadowMetrics(nobody)):
        for metric, labels in _families(collector):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            yield Described(name, metric.type, labels, metric.documentation)


def _families(collector: Collector) -> Iterator[tuple[Metric, tuple[str, ...]]]:
    own = getattr(collector, "_labelnames", None)
    for metric in collector.collect():
        yield metric, tuple(getattr(metric, "_labelnames", ()) if own is None else own)


def key_table() -> str:
    rows = ((f"`{key.name}`", key.default, key.meaning) for key in all_keys())
    return _table(("key", "default", "meaning"), rows)


def metric_table() -> str:
    rows = (
        (f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.meaning)
        for m in all_metrics()
    )
    return _table(("metric", "type", "labels", "meaning"), rows)


TABLES = {"keys": key_table, "metrics": metric_table}


def filled(page: str) -> str:
    """The page with its tables made anew, each between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, table in TABLES.items():
        before, opened, rest = page.partition(f"<!-- {name} -->\n")
        _, closed, after = rest.partition(f"<!-- /{name} -->")
        if not opened or not closed:
            raise ValueError(f"the page has no place for the table of {name}")
        page = f"{before}{opened}{table()}{closed}{after}"
    return page


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _default(field: FieldInfo) -> str:
    """As it would stand in a file."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, ByteSize) and value % MIB == 0:
        return f"`{value // MIB}MiB`"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = list(value)
    written = f"`{value if isinstance(value, str) and value else json.dumps(value)}`"
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        written += f" ({value // MIB} MiB)"
    return written


def _told(meaning: str, field: FieldInfo) -> str:
    said = re.sub(r"\bNone\b", "null", meaning[:1].upper() + meaning[1:])
    if get_origin(field.annotation) is not Literal:
        return said
    choices = ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    return f"{said} One of {choices}."


def _arguments(section: type[BaseModel]) -> dict[str, str]:
    """What the `Args:` of its docstring say, by field."""
    text = inspect.getdoc(section) or ""
    _, _, arguments = text.partition("Args:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w)", "\n" + arguments):
        names, colon, meaning = entry.partition(": ")
        if colon:
            found |= dict.fromkeys(names.replace(" ", "").split(","), " ".join(meaning.split()))
    return found


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["-"] * len(head), *([cell.replace("|", "\\|") for cell in r] for r in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(" - ", "-")


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
