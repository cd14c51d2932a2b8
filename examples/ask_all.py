"""Asks every example question with the official OpenAI client and shows which scale answered it.

Start the service with `make serve`, then run `.venv/bin/python examples/ask_all.py` beside it.
`--scale 9` forces a scale, `--stream` streams.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

from openai import OpenAI

FOLDER = Path(__file__).parent


def data_url(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--scale", type=int, help="answer at this many tokens instead of choosing")
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key="not-needed")
    model = f"m3-{options.scale}" if options.scale else "m3-auto"
    right = tokens = 0
    rows = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text().splitlines()]
    print(f"{'picture':18} {'question':44} {'expected':12} {'answer':12} tokens reason")
    for row in rows:
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_url(FOLDER / row["image"])}},
                    {"type": "text", "text": row["question"]},
                ],
            }
        ]
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=messages, max_tokens=16, stream=options.stream
        )
        if options.stream:
            answer = "".join(c.choices[0].delta.content or "" for c in raw.parse() if c.choices)
        else:
            answer = raw.parse().choices[0].message.content
        scale, reason = raw.headers["x-m3-scale"], raw.headers["x-m3-reason"]
        right += answer == row["answer"]
        tokens += int(scale)
        print(
            f"{row['image']:18} {row['question']:44} {row['answer']:12} {answer:12} "
            f"{scale:>6} {reason}"
        )
    print(f"{right} of {len(rows)} right, {tokens / len(rows):.0f} visual tokens on average")


if __name__ == "__main__":
    main()
