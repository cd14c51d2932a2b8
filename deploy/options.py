"""Options that several commands share: the configuration and what is changed in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

if TYPE_CHECKING:
    from deploy.config import Config

ConfigFile = Annotated[
    str,
    typer.Option("--config", "-c", help="A configuration file, or a packaged one by its name."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, e.g. `serve.replica.replicas=2`."
    ),
]


def configuration(name: str, settings: list[str] | None, **changes: object) -> Config:
    """The file with `--set` and the named options on top; None means not given."""
    from deploy.config import ConfigError, load  # noqa: PLC0415

    given: dict[str, Any] = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, such as serve.port=8001.")
        given[key.strip()] = yaml.safe_load(value)
    named = {key.replace("__", "."): value for key, value in changes.items() if value is not None}
    return load(name, given | named)
