"""How every report becomes a page: templates that escape whatever comes from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render_page(template: str, filters: dict[str, Callable[..., str]], **content: Any) -> str:
    """A template of this package as an HTML document.

    Args:
        filters: by the names that the template uses.
        content: what it shows; everything but `Markup` is escaped, and a missing name is an error.
    """
    environment = Environment(
        loader=PackageLoader("predictor"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**content)
