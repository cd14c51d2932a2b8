"""What a caller could send to hurt the service: a thousand requests, made from a seed.

`python -m tests.hostile.corpus FOLDER` writes their bodies into a folder, to be looked at.
"""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.images import encoded, images
from tests.router.support import data_url, user

CHAT, ROUTE, BATCH = "/v1/chat/completions", "/v1/route", "/v1/route/batch"
GOOD = data_url(encoded("PNG"))
JSON = (("content-type", "application/json"),)


@dataclass(frozen=True)
class Case:
    """One request.

    Args:
        pieces: the body, sent in chunks of no declared length if there is more than one.
    """

    name: str
    pieces: tuple[bytes, ...]
    path: str = CHAT
    method: str = "POST"
    headers: tuple[tuple[str, str | bytes], ...] = JSON


def corpus(seed: int = 0) -> list[Case]:
    """All of it; names are unique."""
    return [
        *pictures(seed),
        *(Case(f"json-{name}", (body,)) for name, body in documents()),
        *exchanges(),
    ]


def request(url: str = GOOD, question: Any = "What is this?", **options: Any) -> dict[str, Any]:
    """A chat request that costs next to nothing if it is answered."""
    part = {"type": "image_url", "image_url": {"url": url}}
    message = {"role": "user", "content": [part, {"type": "text", "text": question}]}
    return {"model": "m3-1", "max_tokens": 1, "messages": [message]} | options


def pictures(seed: int = 0) -> Iterator[Case]:
    """Each hostile picture is decided on by the predictor, which decodes it, or answered."""
    for number, (name, data) in enumerate(images(seed)):
        path = (CHAT, ROUTE)[number % 2]
        model = ("m3-1", "m3-auto")[number % 4 // 2]
        yield Case(f"image-{name}", (encode(request(data_url(data), model=model)),), path)


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def _raw(**fields: str) -> bytes:
    """A good request with members of raw JSON added or replaced."""
    whole = {key: json.dumps(value) for key, value in request().items()} | fields
    return ("{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in whole.items()) + "}").encode()


def documents() -> Iterator[tuple[str, bytes]]:
    """Bodies that are not JSON, not a request, or one that asks for too much."""
    yield from _not_json()
    yield from _numbers()
    yield from _wrong_types()
    yield from _strings()
    yield from _masses()
    yield from _options()
    yield from _urls()


def _not_json() -> Iterator[tuple[str, bytes]]:
    good = encode(request())
    bodies: dict[str, bytes] = {
        "nothing": b"",
        "space": b" \n\t",
        "brace": b"{",
        "cut": good[:-1],
        "cut-in-text": good[:40],
        "two": good + good,
        "trailing-comma": good[:-1] + b",}",
        "comment": b"/* */" + good,
        "single-quotes": b"{'model': 'm3-auto'}",
        "utf-16": good.decode().encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + good,
        "latin-1": b'{"model":"\xe9"}',
        "overlong": b'{"model":"\xc0\xaf"}',
        "surrogate-bytes": b'{"model":"\xed\xa0\x80"}',
        "lone-surrogate": b'{"model":"\\ud800"}',
        "reversed-surrogates": b'{"model":"\\udc00\\ud800"}',
        "bare-nul": b'{"model":"\x00"}',
        "bare-newline": b'{"model":"a\nb"}',
        "nuls": bytes(1000),
        "nan": _raw(temperature="NaN"),
        "infinity": _raw(temperature="Infinity"),
        "minus-infinity": _raw(temperature="-Infinity"),
        "hex": _raw(seed="0x10"),
        "leading-zero": _raw(seed="01"),
        "plus": _raw(seed="+1"),
        "undefined": _raw(seed="undefined"),
        "deep-arrays": b"[" * 100_000,
        "deep-objects": b'{"a":' * 100_000,
        "deep-closed": b"[" * 5000 + b"]" * 5000,
        "deep-in-ignored": _raw(metadata="[" * 5000 + "]" * 5000),
        "deep-in-option": _raw(tools="[" * 190 + "]" * 190),
        "form": b"model=m3-auto&messages=x",
        "multipart": b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm3\r\n--x--',
        "xml": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "yaml": b"!!python/object/apply:os.system ['true']",
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "png": encoded("PNG"),
    }
    yield from bodies.items()
    for value in ("null", "true", "7", "1e400", '"text"', "[]", "[[]]", "{}", "[{}]"):
        yield f"is-{value}", value.encode()


def _numbers() -> Iterator[tuple[str, bytes]]:
    numbers = {
        "zero": "0",
        "minus-one": "-1",
        "minus-zero": "-0.0",
        "tiny": "1e-400",
        "huge": "1e308",
        "beyond": "1e400",
        "long": "9" * 4000,
        "too-long": "9" * 5000,
        "fraction": "0.1" + "0" * 5000 + "1",
        "int64": "9223372036854775808",
        "float-that-is-whole": "1.0",
    }
    for field in ("max_tokens", "temperature", "top_p", "seed", "n", "top_logprobs", "logit_bias"):
        for name, number in numbers.items():
            yield f"{field}-{name}", _raw(**{field: number})
    for field in ("scale", "min_scale", "max_regret", "latency_budget_ms"):
        for name, number in numbers.items():
            yield f"m3-{field}-{name}", _raw(model='"m3-auto"', m3=f'{{"{field}":{number}}}')


def _wrong_types() -> Iterator[tuple[str, bytes]]:
    values = {
        "null": "null",
        "true": "true",
        "text": '"x"',
        "array": "[]",
        "object": "{}",
        "7": "7",
    }
    fields = (
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "stop", "seed", "logprobs", "top_logprobs", "user", "m3", "n"),
        *("tools", "tool_choice", "response_format", "metadata", "modalities"),
    )
    for field in fields:
        for name, value in values.items():
            yield f"{field}-is-{name}", _raw(**{field: value})
    for name, value in values.items():
        message = f'[{{"role":"user","content":{value}}}]'
        yield f"content-is-{name}", _raw(messages=message)
        yield f"message-is-{name}", _raw(messages=f"[{value}]")
        yield f"part-is-{name}", _raw(messages=f'[{{"role":"user","content":[{value}]}}]')
        for part in ('"type":"text","text":{}', '"type":"image_url","image_url":{}', '"type":{}'):
            body = "{" + part.format(value) + "}"
            kind = part.split(":")[1][1:5].strip('"{}')
            yield (
                f"part-{kind}-is-{name}",
                _raw(messages=f'[{{"role":"user","content":[{body}]}}]'),
            )
        url = f'{{"type":"image_url","image_url":{{"url":{value}}}}}'
        yield f"url-is-{name}", _raw(messages=f'[{{"role":"user","content":[{url}]}}]')


def _strings() -> Iterator[tuple[str, bytes]]:
    texts = {
        "nul": "\0",
        "nuls": "What?\0\0",
        "crlf": "x\r\nx-injected: 1\r\n\r\n",
        "rtl": "\u202e\u2066\u200b\ufeff",
        "combining": "e" + "\u0301" * 2000,
        "emoji": "👨‍👩‍👧‍👦" * 100,
        "special-tokens": "</s><s><image>ASSISTANT: <unk>\n",
        "format": "%s%n{0.__class__}${7*7}{{7*7}}#{7*7}",
        "sql": "'; DROP TABLE requests; --",
        "path": "../../../../etc/passwd",
        "script": "<script>alert(1)</script>",
        "ansi": "\x1b[2J\x1b]0;x\x07",
        "noncharacter": "\uffff\U0010ffff",
        "regex": "(a+)+$" + "a" * 5000,
        "spaces": " " * 60_000 + "?",
        "words": "how many " * 20_000,
        "digits": "7" * 100_000,
        "one-megabyte": "a" * 1_000_000,
    }
    for name, text in texts.items():
        yield f"question-{name}", encode(request(question=text))
        yield f"model-{name}", encode(request(model=text))
        yield f"salt-{name}", encode(request(m3={"cache_salt": text}))
        yield f"stop-{name}", encode(request(stop=[text]))
        yield f"user-{name}", encode(request(user=text))
        yield f"key-{name}", encode(request(**{text: 1}))
        yield f"role-{name}", encode(request(messages=[{"role": text, "content": "x"}]))
    for key in ("__proto__", "constructor", "prototype", "__class__", "toString", "$ref", "", " "):
        yield f"key-{key or 'empty'}-", encode(request(**{key: {"polluted": True}}))
        yield f"own-key-{key or 'empty'}-", encode(request(m3={key: {"polluted": True}}))


def _masses() -> Iterator[tuple[str, bytes]]:
    message = {"role": "user", "content": "x"}
    part = {"type": "image_url", "image_url": {"url": GOOD}}
    yield "million-numbers", b'{"model":"m3-1","messages":[' + b"0," * 1_000_000 + b"0]}"
    yield "million-objects", b'{"model":"m3-1","messages":[' + b"{}," * 1_000_000 + b"{}]}"
    yield "many-keys", encode(request(**{f"k{n}": n for n in range(20_000)}))
    yield "many-wrong-messages", encode(request(messages=[{"role": n} for n in range(10_000)]))
    yield "many-messages", encode(request(messages=[message] * 10_000))
    yield "thousand-messages", encode(request(messages=[message] * 1000 + request()["messages"]))
    yield "many-parts", encode(request(messages=[{"role": "user", "content": [part] * 40}]))
    yield "sixteen-images", encode(request(messages=[user(*[part] * 16, "What?")]))
    yield "many-texts", encode(request(messages=[user(*["x"] * 5000)]))
    yield "many-stops", encode(request(stop=["x"] * 10_000))
    yield "duplicate-keys", _raw()[:-1] + b',"model":"m3-9","model":"nobody"}'
    yield "duplicate-messages", _raw()[:-1] + b',"messages":[]}'
    yield "many-escapes", _raw(user='"' + "\\u0041" * 300_000 + '"')
    yield "big-logit-bias", encode(request(logit_bias={str(n): -100 for n in range(10_000)}))
    yield "nested-metadata", encode(request(metadata={"a": [{"b": [1] * 1000}] * 20}))


def _options() -> Iterator[tuple[str, bytes]]:
    asked: dict[str, dict[str, Any]] = {
        "n": {"n": 10**6},
        "max-tokens": {"max_tokens": 2**31 - 1, "stop": ["e", "a", " ", "o"]},
        "max-tokens-beyond": {"max_tokens": 2**31},
        "lengths-differ": {"max_completion_tokens": 7},
        "stop-empty": {"stop": ""},
        "stop-of-empty": {"stop": [""]},
        "stop-long": {"stop": ["x" * 100_000]},
        "logprobs-alone": {"top_logprobs": 20},
        "logprobs": {"logprobs": True, "top_logprobs": 20},
        "hot": {"temperature": 2, "top_p": 1e-300, "seed": -(2**63)},
        "functions": {"functions": [{"name": "x"}]},
        "tools": {"tools": [{"type": "function", "function": {"name": "x"}}]},
        "json-schema": {"response_format": {"type": "json_schema", "json_schema": {}}},
        "json-object": {"response_format": {"type": "json_object"}},
        "audio": {"audio": {"voice": "x", "format": "wav"}, "modalities": ["audio"]},
        "prediction": {"prediction": {"type": "content", "content": "x" * 1000}},
        "web-search": {"web_search_options": {}},
        "penalties": {"frequency_penalty": 2, "presence_penalty": -2},
        "usage-without-stream": {"stream_options": {"include_usage": True}},
        "obfuscation": {"stream": True, "stream_options": {"include_obfuscation": True}},
        "streamed": {"stream": True, "stream_options": {"include_usage": True}},
        "scale-twice": {"m3": {"scale": 9}},
        "scale-and-regret": {"m3": {"max_regret": 0.1}},
        "salt-too-long": {"m3": {"cache_salt": "x" * 257}},
        "assistant-last": {
            "messages": [*request()["messages"], {"role": "assistant", "content": "x"}]
        },
        "image-by-assistant": {
            "messages": [request()["messages"][0] | {"role": "assistant"}, *request()["messages"]]
        },
        "image-by-system": {
            "messages": [request()["messages"][0] | {"role": "system"}, *request()["messages"]]
        },
        "tool-role": {"messages": [{"role": "tool", "content": "x", "tool_call_id": "x"}]},
        "no-question": {"messages": [user({"type": "image_url", "image_url": {"url": GOOD}})]},
        "no-image": {"messages": [user("x")]},
        "detail": {
            "messages": [user({"type": "image_url", "image_url": {"url": GOOD, "detail": "x"}})]
        },
        "input-audio": {"messages": [user({"type": "input_audio", "input_audio": {"data": ""}})]},
        "file": {"messages": [user({"type": "file", "file": {"file_id": "x"}})]},
    }
    for name, options in asked.items():
        yield f"asks-{name}", encode(request(**options))


def _urls() -> Iterator[tuple[str, bytes]]:
    payload = GOOD.partition(",")[2]
    urls = (
        *("", "data:", "data:,", "data:;base64,", "data:image/png;base64", "file:///etc/passwd"),
        *("http://127.0.0.1/", "https://169.254.169.254/latest/meta-data/", "gopher://x:6379/_"),
        *("ftp://x/a.png", "jar:http://x!/a", "javascript:alert(1)", "//127.0.0.1/a.png"),
        *("https://[::ffff:127.0.0.1]/", "https://user@127.0.0.1/", "https:\\\\127.0.0.1\\"),
        *(
            "https://2130706433/",
            "https://0x7f000001/",
            "https://017700000001/",
            "https://①②⑦.0.0.1/",
        ),
        *("\0data:image/png;base64,", " data:image/png;base64,", "data:image/png;base64,\n"),
        f"data:image/png;base64,{payload}====",
        f"data:image/png;base64,{payload[:-2]}",
        f"data:image/png;base64,{payload.replace('A', '-')}",
        f"data:image/png;base64,{payload}#fragment",
        f"data:image/png;charset=utf-7;base64,{payload}",
        f"data:text/html;base64,{payload}",
        f"DATA:IMAGE/PNG;BASE64,{payload}",
        "data:image/png;base64," + "A" * 14_000_000,
        "data:image/png;base64," + "é" * 1000,
        "data:image/png;" + "x" * 1_000_000 + ";base64,",
    )
    for number, url in enumerate(urls):
        yield f"url-{number}", encode(request(url))


def exchanges() -> Iterator[Case]:
    """Paths, methods, headers and ways of sending a body."""
    good = encode(request())
    for path in (
        *("/", "//", "/v1", "/v1/", "/V1/chat/completions", "/v1/chat/completions/", "/docs"),
        *("/v1/../v1/chat/completions", "/v1/models/%00", "/v1/models/%ED%A0%80", "/v1/models/%2e"),
        *("/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/" + "x" * 6000, "/admin", "/.env"),
        *("/v1/models/m3-99999999999999999999", "/v1/models/a%0d%0ax-injected:%201", "/redoc"),
        *("/v1/chat/completions?" + "a=b&" * 1000, "/openapi.json", "/healthz", "/v1/files"),
    ):
        for method in ("GET", "POST"):
            yield Case(f"{method}-{path[:60]}", (good,) if method == "POST" else (), path, method)
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND", "get"):
        yield Case(f"method-{method}", (), CHAT, method)
    for name, fields in _headers().items():
        yield Case(f"header-{name}", (good,), headers=(*JSON, *fields))
    for kind in (
        "text/plain",
        "multipart/form-data",
        "application/xml",
        "",
        "application/json;" * 99,
    ):
        yield Case(f"type-{kind[:30]}", (good,), headers=(("content-type", kind),))
    for coding, body in {
        "gzip": gzip.compress(good, mtime=0),
        "gzip-bomb": gzip.compress(bytes(20_000_000), mtime=0),
        "deflate": zlib.compress(good),
        "br": b"\x8b\x00\x80",
        "gzip-that-is-none": good,
    }.items():
        coded = ("content-encoding", coding.split("-")[0])
        yield Case(f"coding-{coding}", (body,), headers=(*JSON, coded))
    yield Case("chunked", (good[:10], good[10:50], good[50:]))
    yield Case("chunked-by-byte", tuple(good[n : n + 1] for n in range(len(good))))
    yield Case("chunked-empty", (b"", b""))
    yield Case("chunked-too-large", (bytes(1_000_000),) * 24)
    yield Case("too-large", (b"[" + b" " * 21_000_000 + b"]",))
    for name, batch in {
        "nothing": {},
        "none": {"requests": []},
        "many": {"requests": [1] * 65},
        "nested": {"requests": [{"requests": [request()]}]},
        "wrong": {"requests": [None, 1, "x", [], {}, request(model=7), request("data:,")]},
        "good-and-bad": {"requests": [request(), request(model="nobody"), request("file:///x")]},
        "unknown": {"requests": [request()], "model": "m3-auto"},
        "keys": {f"k{n}": n for n in range(5000)},
    }.items():
        yield Case(f"batch-{name}", (encode(batch),), BATCH)


def _headers() -> dict[str, tuple[tuple[str, str | bytes], ...]]:
    return {
        "request-id-long": (("x-request-id", "x" * 4000),),
        "request-id-bytes": (("x-request-id", b"\xff\xfe\x80"),),
        "request-id-quotes": (("x-request-id", '"><script>{}\\'),),
        "own-request-id": (("x-m3-request-id", "mine"),),
        "decision": (("x-m3-scale", "576"), ("x-m3-reason", "forced")),
        "authorization-empty": (("authorization", "Bearer"),),
        "authorization-bytes": (("authorization", b"Bearer \xff\xfe"),),
        "authorization-long": (("authorization", "Bearer " + "x" * 6000),),
        "host": (("host", "evil.example"),),
        "forwarded": (("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "x")),
        "origin": (("origin", "null"), ("access-control-request-method", "POST")),
        "many": tuple((f"x-header-{n}", "x") for n in range(60)),
        "twice": (("content-type", "text/html"),),
        "expect": (("expect", "100-continue"),),
        "range": (("range", "bytes=0-1,5-"),),
        "accept": (("accept", "image/png"), ("accept-encoding", "x" * 1000)),
        "trace-context": (("traceparent", "00-" + "z" * 32 + "-x-01"), ("tracestate", "=" * 500)),
        "trace-context-zero": (("traceparent", f"00-{'0' * 32}-{'0' * 16}-00"),),
        "baggage": (("baggage", "a=" + "b" * 3000),),
        "timeout": (("x-request-timeout-seconds", "-1"), ("x-request-disconnect-disabled", "?1")),
        "serve": (("serve_multiplexed_model_id", "x"), ("x-session-id", "../x")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(corpus(options.seed)):
        name = "".join(c if c.isalnum() else "-" for c in case.name)[:80]
        (options.folder / f"{number:04}-{name}").write_bytes(b"".join(case.pieces))


if __name__ == "__main__":
    main()
