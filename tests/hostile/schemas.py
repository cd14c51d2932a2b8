"""Hypothesis strategies from the schemas of `/openapi.json`, and ways to spoil what they make."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


class Documents:
    """Makes documents by the schemas of one OpenAPI document.

    Args:
        schemas: `components.schemas`.
        likely: by the name of a property, values that get further than random ones would.
    """

    def __init__(
        self, schemas: dict[str, Any], likely: dict[str, st.SearchStrategy[Any]] | None = None
    ) -> None:
        self._schemas = schemas
        self._likely = likely or {}

    def named(self, name: str) -> st.SearchStrategy[Any]:
        """What a schema allows."""
        return self.of(self._schemas[name])

    def of(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self.named(schema["$ref"].rpartition("/")[2])
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return st.one_of([self.of(each) for each in schema[key]])
        make = getattr(self, f"_{schema.get('type', 'anything')}")
        made: st.SearchStrategy[Any] = make(schema)
        return made

    def _object(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        parts = {
            name: st.one_of([*[self._likely[name]] * 4, self.of(each)])
            if name in self._likely
            else self.of(each)
            for name, each in properties.items()
        }
        optional = sorted(parts.keys() - required)
        # Few at once: with all of them, some would always be at odds.
        chosen = (
            st.lists(st.sampled_from(optional), max_size=3, unique=True)
            if optional
            else st.just([])
        )
        return chosen.flatmap(
            lambda names: st.fixed_dictionaries({n: parts[n] for n in (*sorted(required), *names)})
        )

    def _array(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        most = min(schema.get("maxItems", 3), 3)
        return st.lists(self.of(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)

    def _string(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        most = min(schema.get("maxLength", 20), 20)
        return st.text(
            st.characters(exclude_categories=["Cs"]),
            min_size=schema.get("minLength", 0),
            max_size=most,
        )

    def _integer(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        least = schema.get("minimum")
        most = schema.get("maximum")
        if "exclusiveMaximum" in schema:
            most = schema["exclusiveMaximum"] - 1
        return st.integers(least, most)

    def _number(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        least = schema.get("minimum", schema.get("exclusiveMinimum"))
        return st.floats(
            least,
            schema.get("maximum"),
            exclude_min="exclusiveMinimum" in schema,
            allow_nan=False,
            allow_infinity=False,
        )

    def _boolean(self, _: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.booleans()

    def _null(self, _: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.none()

    def _anything(self, _: dict[str, Any]) -> st.SearchStrategy[Any]:
        return ANYTHING.filter(is_json)


def is_json(value: Any) -> bool:
    """Whether JSON has it: no NaN, no infinity, no half of a surrogate pair."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(is_json(part) for pair in value.items() for part in pair)
    return True


@st.composite
def spoiled(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> Any:
    """A document with one thing in it left out, put in, or replaced."""
    document = draw(documents)
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
            at = at[key]
            continue
        if draw(st.booleans()):
            at[key] = draw(ANYTHING)
        else:
            del at[key]
        return document
    if isinstance(at, dict):
        at[draw(st.text(max_size=8))] = draw(ANYTHING)
    else:
        at.append(draw(ANYTHING))
    return document
