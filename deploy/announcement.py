"""What the user sees when requests can be sent: where to, and one to copy."""

from __future__ import annotations

import json
import mimetypes
import os
import re
import shlex
from pathlib import Path

from deploy.client import KEY_VARIABLE
from deploy.config import OPEN_TO_ALL, Config

EXAMPLES = Path(__file__).with_name("examples").resolve()  # a link, which a wheel has as files


def ready_message(config: Config, logs: Path | None) -> str:
    """The address, where the logs are, and a request about an example picture."""
    host = "127.0.0.1" if config.serve.host in ("0.0.0.0", "::") else config.serve.host
    url = f"http://{host}:{config.serve.port}"
    where = f"Logs while it runs: {logs}\n" if logs else ""
    if config.records_store is not None:
        where += f"Records of requests (docs/records.md): {config.records_store}\n"
    where += f"{OPEN_TO_ALL}\n" if config.is_open_to_all else ""
    return f"""
m3-router is ready at {url} with {config.model.checkpoint}. Stop it with Ctrl-C.
{where}Playground in the browser: {url}/dashboard
Try it:

{curl_request(url, with_key=config.router.access.keys != "none")}
"""


def curl_request(url: str, *, with_key: bool = False) -> str:
    """A request about an example picture, for a POSIX shell with curl.

    Args:
        with_key: the service asks for an API key; it is taken from the environment.
    """
    picture, question = example()
    text = re.sub(r"[\\$`]", r"\\\g<0>", json.dumps({"type": "text", "text": question}))
    kind = mimetypes.guess_type(picture)[0]
    data = f"data:{kind};base64,$(base64 < {shlex.quote(picture)} | tr -d '\\n')"
    post = f"curl -s {url}/v1/chat/completions"
    if with_key:
        post += f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
    return f"""{post} -H 'Content-Type: application/json' -d @- <<JSON
{{"model": "m3-auto", "messages": [{{"role": "user", "content": [{text},
  {{"type": "image_url", "image_url": {{"url": "{data}"}}}}]}}]}}
JSON"""


def example() -> tuple[str, str]:
    """A picture, as one would type its path here, and a question about it."""
    listing = EXAMPLES / "questions.jsonl"
    if not listing.is_file():  # nobody has put them there
        return "photo.jpg", "What is in the picture?"
    with listing.open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    return os.path.relpath(EXAMPLES / first["image"]), first["question"]
