"""How every report becomes a page: templates that escape whatever comes from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape


def render_page(
    template: str,
    filters: dict[str, Callable[..., str]],
    package: str = "predictor",
    **content: Any,
) -> str:
    """A template as an HTML document.

    Args:
        filters: by the names that the template uses.
        package: that has the template; it may include those of this one.
        content: what it shows; everything but `Markup` is escaped, and a missing name is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("predictor")]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**content)


def or_dash(text: Callable[[float], str]) -> Callable[[float | None], str]:
    """A filter for figures that may not be there."""
    return lambda value: "–" if value is None else text(value)


per_cent = or_dash(lambda share: f"{100 * share:.1f}")
number = or_dash(lambda value: f"{value:,.1f}" if value < 1000 else f"{value:,.0f}")
