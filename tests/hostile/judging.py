"""Whether an answer to a hostile request is one that the service may give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx

from tests.hostile.corpus import Case

DOCS = Path(__file__).parents[2] / "docs" / "api.md"
# What our own words never hold: traces, addresses, modules, and what decoders and parsers say.
LEAKS = re.compile(
    r"Traceback|File \"|line \d+|0x[0-9a-f]{4,}|\.py\b|site-packages|\bPIL\b|pillow|pydantic|"
    r"libpng|libjpeg|libwebp|cannot identify|broken data stream|decompress|zlib|struct\.error|"
    r"ValueError|TypeError|KeyError|OSError|SyntaxError|Exception|jiter|recursion|EOF|torch",
    re.IGNORECASE,
)
NOT_JSON = ("/metrics",)  # Prometheus' text


def codes() -> dict[str, set[int]]:
    """Every code of docs/api.md with its statuses."""
    _, _, after = DOCS.read_text(encoding="utf-8").partition("| code | status |")
    rows = [row.split("|") for row in after.split("\n\n")[0].splitlines()[2:]]
    return {row[1].strip(" `"): {int(row[2])} for row in rows}


CODES = codes()


def faults(case: Case, response: httpx.Response) -> list[str]:
    """What is wrong with `response`; nothing, if it is as the documentation says."""
    found = []
    status = response.status_code
    if status >= 500:
        found.append(f"status {status}")
    if not 200 <= status < 300:
        found += _of_error(case, response)
    if "x-m3-request-id" not in response.headers:
        found.append("no request id")
    if any("injected" in name for name in response.headers):
        found.append("a header of the caller's making")
    if len(response.content) > 100_000:
        found.append(f"{len(response.content)} bytes of answer")
    return found


def _of_error(case: Case, response: httpx.Response) -> list[str]:
    if case.method == "HEAD":
        return []
    try:
        body: Any = response.json()
        error = body["error"]
        message, code = error["message"], error["code"]
    except (ValueError, KeyError, TypeError):
        return [f"not an error of ours: {response.text[:200]!r}"]
    found = []
    if body.keys() != {"error"} or error.keys() != {"message", "type", "param", "code"}:
        found.append(f"another shape: {body}")
    if response.status_code not in CODES.get(code, ()):
        found.append(f"{code} with {response.status_code} is not documented")
    if not message or len(message) > 1000 or len(error["param"] or "") > 1000:
        found.append(f"a message of {len(message)} characters")
    if LEAKS.search(_own_words(message)):
        found.append(f"says too much: {message}")
    return found


def _own_words(message: str) -> str:
    """Without what it quotes from the request."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|'.*…", "", message)
