"""From a clone to the first answer, as a newcomer would: clone, `make serve`, one request.

Nothing is taken from this checkout but its commits; the environment is built anew.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.results import ROOT, write

PORT = 8017
READY_WITHIN_S = 1200.0


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "m3-router"
        started = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        server = subprocess.Popen(
            ["make", "serve", f"ARGS=--port {PORT}"], cwd=clone, start_new_session=True
        )
        try:
            wait_until_ready(server, started)
            ready = time.monotonic() - started
            answer = ask(clone)
            answered = time.monotonic() - started
        finally:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(timeout=60)
    figures = {"ready_s": round(ready, 1), "first_answer_s": round(answered, 1), "answer": answer}
    print(f"\nfirst answer: {answered:.0f} s after git clone ({answer!r})")
    print(write("first_answer", figures))


def wait_until_ready(server: subprocess.Popen[bytes], started: float) -> None:
    while time.monotonic() - started < READY_WITHIN_S:
        if server.poll() is not None:
            raise RuntimeError("make serve ended before it was ready")
        try:
            if httpx.get(f"http://127.0.0.1:{PORT}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"not ready within {READY_WITHIN_S:.0f} s")


def ask(clone: Path) -> str:
    row = json.loads((clone / "examples" / "questions.jsonl").read_text().splitlines()[0])
    picture = base64.b64encode((clone / "examples" / row["image"]).read_bytes()).decode()
    content = [
        {"type": "text", "text": row["question"]},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    body = {"model": "m3-auto", "messages": [{"role": "user", "content": content}]}
    reply = httpx.post(f"http://127.0.0.1:{PORT}/v1/chat/completions", json=body, timeout=60)
    answer: str = reply.raise_for_status().json()["choices"][0]["message"]["content"]
    return answer
