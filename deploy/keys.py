"""`m3-router keys`: makes API keys and looks after the file that holds their hashes."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make API keys and list them. The file holds their SHA-256 only; name it in "
    "`router.access.keys`. A running service takes changes over within a second or two.",
)

Name = Annotated[str, typer.Argument(help="Who it is for; appears in logs.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Add the entry to this key file.", dir_okay=False),
]
Requests = Annotated[int | None, typer.Option(min=1, help="Its limit of requests per minute.")]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Its limit of prompt and answer tokens per minute.")
]
Operator = Annotated[bool, typer.Option(help="May also see /metrics.")]


@app.command()
def new(
    name: Name,
    file: KeyFile = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    operator: Operator = False,
) -> None:
    """Make a key. It is printed once and kept nowhere.

    Example: `m3-router keys new alice --file keys.yaml --requests-per-minute 600`
    """
    from router.auth import new_key  # noqa: PLC0415

    key = new_key()
    _take(entry(name, key, requests_per_minute, tokens_per_minute, operator), file)
    print(key)


@app.command("hash")
def hash_(
    name: Name,
    file: KeyFile = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    operator: Operator = False,
) -> None:
    """Make the entry of a key that exists already, read from standard input."""
    from router.auth import require_usable  # noqa: PLC0415

    key = require_usable(sys.stdin.readline().strip(), "standard input")
    _take(entry(name, key, requests_per_minute, tokens_per_minute, operator), file)


@app.command("list")
def list_(
    file: Annotated[Path, typer.Argument(help="A key file.", dir_okay=False)],
) -> None:
    """Check a key file and list its keys."""
    from router.auth import read_key_file  # noqa: PLC0415

    table = Table("name", "sha256", "requests/min", "tokens/min", "operator", box=None)
    for key in read_key_file(file).keys:
        limits = (key.requests_per_minute, key.tokens_per_minute)
        table.add_row(
            key.name,
            f"{key.digest.hex()[:12]}…",
            *("-" if limit is None else str(limit) for limit in limits),
            "yes" if key.operator else "",
        )
    Console().print(table)


def entry(
    name: str,
    key: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    operator: bool,
) -> str:
    """The key's entry, as it stands in a key file."""
    from router.auth import digest_of_key  # noqa: PLC0415

    fields = {"name": f'"{name}"', "sha256": f'"{digest_of_key(key).hex()}"'}
    if requests_per_minute is not None:
        fields["requests_per_minute"] = str(requests_per_minute)
    if tokens_per_minute is not None:
        fields["tokens_per_minute"] = str(tokens_per_minute)
    if operator:
        fields["operator"] = "true"
    lines = [f"{field}: {value}" for field, value in fields.items()]
    return "- " + "\n  ".join(lines) + "\n"


def _take(text: str, file: Path | None) -> None:
    """Adds the entry to the file, or shows it to be added by hand."""
    if file is not None:
        add(text, file)
        print(f"Added to {file}.", file=sys.stderr)
        return
    require_in_order(text, "the new entry")
    print(f"Entry for the key file:\n\n{text}", file=sys.stderr)


def add(text: str, file: Path) -> None:
    """Appends an entry in one step: who reads the file sees it before or after, never in between.

    Raises:
        KeysError: the file would not be in order with it; it stays as it was.
    """
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    # `[]` is how an empty list is written; nothing can be added below it.
    after = text if before.strip() in ("", "[]") else f"{before.rstrip()}\n{text}"
    require_in_order(after, str(file))
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as output:
            output.write(after)
        if file.exists():
            draft.chmod(file.stat().st_mode & 0o777)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def require_in_order(text: str, source: str) -> None:
    """Raises KeysError if this is not what a key file may hold."""
    from router.auth import parse_keys  # noqa: PLC0415
    from router.config import AccessConfig  # noqa: PLC0415

    parse_keys(text, source, AccessConfig())
