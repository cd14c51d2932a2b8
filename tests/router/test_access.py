"""Who is let in and how much they may use, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from m3_backend.errors import BackendError, ServiceError
from router.access import Access, Caller, _duration
from router.auth import Key, KeyRing, KeyStore, digest_of_key, new_key
from router.config import AccessConfig, RouterConfig
from router.dashboard.page import OPEN_PATHS
from router.errors import RateLimitError
from router.http import build_app
from router.limits import Limiter, Taken
from router.service import RoutingService
from tests.conftest import RedisServer
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import chat, client_of, image_part, serving

CHAT = "/v1/chat/completions"
ALICE, BOB, OPERATOR = new_key(), new_key(), new_key()
STILL = 1e9  # seconds that a limit takes to come back: while a test runs, it does not


def ring(**limits: int | None) -> KeyRing:
    return KeyRing(
        [
            Key("alice", digest_of_key(ALICE), **limits),  # type: ignore[arg-type]
            Key("bob", digest_of_key(BOB), **limits),  # type: ignore[arg-type]
            Key("op", digest_of_key(OPERATOR), operator=True),
        ]
    )


def guarded(
    backend: FakeBackend | None = None,
    predictor: FakePredictor | None = None,
    *,
    limiter: Limiter | None = None,
    limits: dict[str, int | None] | None = None,
    **rules: Any,
) -> FastAPI:
    """An app with keys of three people; `limits` are alice's and bob's."""
    config = RouterConfig(access=AccessConfig(**rules))
    service = RoutingService(backend or FakeBackend(), predictor, config)
    keys = KeyStore(lambda: ring(**(limits or {})))
    return build_app(service, access=Access(keys, limiter or Limiter(period_s=STILL)))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


PROTECTED = [
    ("POST", CHAT),
    ("POST", "/v1/route"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m3-36"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_nobody_gets_in_without_a_key(method: str, path: str) -> None:
    async with client_of(guarded()) as client:
        for header in (
            {},
            {"Authorization": ""},
            {"Authorization": ALICE},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Basic {ALICE}"},
            bearer(new_key()),
            bearer(ALICE[:-1]),
            bearer("x" * 100_000),
            {"X-Api-Key": ALICE},
        ):
            response = await client.request(method, path, json=chat(), headers=header)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (401, "invalid_api_key")
            assert error["type"] == "invalid_request_error"
            assert error.keys() == {"message", "type", "param", "code"}
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-m3-request-id"]
        good = await client.request(method, path, json=chat(), headers=bearer(OPERATOR))
        assert good.status_code == 200


async def test_every_route_is_behind_the_gate_but_the_probes_and_the_page() -> None:
    app = guarded()
    routes = [r for r in app.routes if getattr(r, "dependant", None) is not None]
    open_to_all = set()
    async with client_of(app) as client:
        for route in routes:
            method = sorted(route.methods)[0]  # type: ignore[attr-defined]
            answer = await client.request(method, route.path.replace("{model}", "m3-36"))  # type: ignore[attr-defined]
            if answer.status_code != 401:
                open_to_all.add(route.path)  # type: ignore[attr-defined]
    # The page's own files tell nothing; what it shows is asked for with a key.
    assert open_to_all == {"/healthz", "/readyz"} | OPEN_PATHS


async def test_without_keys_everybody_gets_in() -> None:
    service = RoutingService(FakeBackend(), None, RouterConfig())
    async with client_of(build_app(service)) as client:
        for method, path in PROTECTED:
            assert (await client.request(method, path, json=chat())).status_code == 200


async def test_configured_keys_are_in_force_without_further_ado(tmp_path: Path) -> None:
    """Whoever builds the app from a configuration cannot leave the door open by forgetting it."""
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {{name: alice, sha256: '{digest_of_key(ALICE).hex()}'}}")
    config = RouterConfig(access=AccessConfig(keys=str(path)))
    async with client_of(build_app(RoutingService(FakeBackend(), None, config))) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 401
        assert (await client.post(CHAT, json=chat(), headers=bearer(ALICE))).status_code == 200
    broken = RouterConfig(access=AccessConfig(keys="/nowhere"))
    with pytest.raises(ServiceError, match="cannot be read"):
        build_app(RoutingService(FakeBackend(), None, broken))


async def test_a_body_without_a_key_is_not_read() -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    async with client_of(guarded()) as client:
        assert (await client.post(CHAT, content=endless())).status_code == 401


async def test_what_concerns_all_callers_is_for_operators() -> None:
    async with client_of(guarded()) as client:
        refused = await client.get("/metrics", headers=bearer(ALICE))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operator_only")
    async with client_of(guarded(public_metrics=True)) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.post(CHAT, json=chat())).status_code == 401


async def test_replicas_are_not_asked_for_somebody_who_is_not_let_in() -> None:
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1

    service = RoutingService(FakeBackend(), None, RouterConfig())
    app = build_app(service, access=Access(KeyStore(ring), Limiter()), before_scrape=ask)
    async with client_of(app) as client:
        await client.get("/metrics")
        await client.get("/metrics", headers=bearer(ALICE))
        assert asked == 0
        await client.get("/metrics", headers=bearer(OPERATOR))
        assert asked == 1


def test_the_official_client() -> None:
    with serving(guarded(limits={"requests_per_minute": 2})) as url:
        good = openai.OpenAI(base_url=f"{url}/v1", api_key=ALICE, max_retries=0)
        assert good.chat.completions.create(**chat())._request_id
        assert good.models.list().data
        assert good.chat.completions.create(**chat()).choices
        with pytest.raises(openai.RateLimitError) as limited:
            good.chat.completions.create(**chat())
        assert limited.value.code == "rate_limit_exceeded"
        bad = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as unknown:
            bad.chat.completions.create(**chat(stream=True))
        assert unknown.value.code == "invalid_api_key"


async def test_the_log_names_the_key_and_does_not_hold_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "m3_router.requests")
    async with client_of(guarded()) as client:
        await client.post(CHAT, json=chat(), headers=bearer(ALICE))
        await client.post(CHAT, json=chat(), headers=bearer(BOB[:-1] + "x"))
    let_in, refused = (json.loads(record.getMessage()) for record in caplog.records)
    assert let_in["key"] == "alice"
    assert (refused["status"], refused["code"]) == (401, "invalid_api_key")
    assert "key" not in refused
    assert ALICE not in caplog.text
    assert BOB[:-1] not in caplog.text


async def ask(client: httpx.AsyncClient, key: str = ALICE, **options: Any) -> httpx.Response:
    return await client.post(CHAT, json=chat(**options), headers=bearer(key))


async def test_requests_per_minute() -> None:
    async with client_of(guarded(limits={"requests_per_minute": 2})) as client:
        first = await ask(client)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert "x-ratelimit-limit-tokens" not in first.headers
        route = await client.post("/v1/route", json=chat(), headers=bearer(ALICE))
        assert route.headers["x-ratelimit-remaining-requests"] == "0"
        refused = await ask(client)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
        assert error["type"] == "rate_limit_error"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        # Half a period brings back one of two requests.
        assert int(refused.headers["retry-after"]) == pytest.approx(STILL / 2, rel=0.01)
        assert (await ask(client, BOB)).status_code == 200
        assert "x-ratelimit-limit-requests" not in (await ask(client, OPERATOR)).headers
        assert (await client.get("/v1/models", headers=bearer(ALICE))).status_code == 200


async def test_a_batch_is_as_many_requests_as_are_in_it() -> None:
    async with client_of(guarded(limits={"requests_per_minute": 5})) as client:
        batch = {"requests": [chat()] * 4}
        for status in (200, 429):
            answer = await client.post("/v1/route/batch", json=batch, headers=bearer(ALICE))
            assert answer.status_code == status


async def test_a_batch_that_can_never_fit_is_not_tried_again() -> None:
    async with client_of(guarded(limits={"requests_per_minute": 4})) as client:
        for size, again in ((5, False), (4, True)):  # one of the four went to the batch of five
            batch = {"requests": [chat()] * size}
            answer = await client.post("/v1/route/batch", json=batch, headers=bearer(ALICE))
            assert answer.status_code == 429
            assert ("retry-after" in answer.headers) is again
            assert ("x-should-retry" in answer.headers) is not again
            assert ("up to 5 requests" in answer.json()["error"]["message"]) is not again


async def test_a_client_that_leaves_while_tokens_are_reserved_gets_them_back() -> None:
    """Redis may have taken them when nobody waits for its answer any more."""
    limiter = Limiter(period_s=STILL)
    caller = Caller(Key("alice", digest_of_key(ALICE), tokens_per_minute=1000), limiter)
    asked, go_on, take = asyncio.Event(), asyncio.Event(), limiter.take

    async def slow(*args: Any, **options: Any) -> Taken:
        taken = await take(*args, **options)
        asked.set()
        await go_on.wait()
        return taken

    limiter.take = slow  # type: ignore[method-assign]
    reserving = asyncio.ensure_future(caller.take_tokens(900))
    await asked.wait()
    reserving.cancel()
    await asyncio.wait([reserving])
    assert reserving.cancelled()
    limiter.take = take  # type: ignore[method-assign]
    go_on.set()
    async with asyncio.timeout(30):
        while caller.headers().get("x-ratelimit-remaining-tokens") != "1000":
            await limiter.settled()
            await asyncio.sleep(0)
            with contextlib.suppress(RateLimitError):
                await caller.take_requests(0)


async def test_a_request_over_the_limit_costs_no_planning() -> None:
    predictor = FakePredictor()
    app = guarded(predictor=predictor, limits={"requests_per_minute": 1})
    async with client_of(app) as client:
        await ask(client)
        await ask(client)
    assert len(predictor.asked) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_per_minute(stream: bool) -> None:
    backend = FakeBackend()
    app = guarded(backend, FakePredictor(), limits={"tokens_per_minute": 1000})
    async with client_of(app) as client:
        # 6 tokens of text and 36 of the image, and up to 100 of an answer.
        answered = await ask(client, max_tokens=100, stream=stream)
        assert answered.status_code == 200
        assert answered.headers["x-ratelimit-remaining-tokens"] == str(1000 - 142)
        # 56 tokens were read and 4 written.
        assert answered.text
        after = await ask(client, max_tokens=100)
        assert after.headers["x-ratelimit-remaining-tokens"] == str(1000 - 60 - 142)
        refused = await ask(client, max_tokens=900)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 0
        assert "x-should-retry" not in refused.headers
        assert len(backend.requests) == 2
        route = await client.post("/v1/route", json=chat(max_tokens=900), headers=bearer(ALICE))
        assert route.status_code == 200
        assert (await ask(client, BOB, max_tokens=900)).status_code == 200


async def test_what_can_never_fit_is_not_tried_again() -> None:
    app = guarded(limits={"tokens_per_minute": 1000})
    with serving(app) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=ALICE, max_retries=5)
        with pytest.raises(openai.RateLimitError, match="1,182 tokens") as caught:
            client.chat.completions.create(**chat(max_tokens=600))
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers


async def test_a_finer_scale_costs_more() -> None:
    async with client_of(guarded(limits={"tokens_per_minute": 10_000})) as client:
        left = [
            int((await ask(client, key, model=model)).headers["x-ratelimit-remaining-tokens"])
            for key, model in ((ALICE, "m3-9"), (BOB, "m3-576"))
        ]
    assert left[0] - left[1] == 576 - 9


async def test_a_request_that_fails_costs_nothing() -> None:
    app = guarded(FakeBackend(error=BackendError("gone")), limits={"tokens_per_minute": 1000})
    async with client_of(app) as client:
        for _ in range(5):
            assert (await ask(client, max_tokens=100)).status_code == 502
            await asyncio.sleep(0)


async def test_ingress_replicas_share_limits_through_redis(redis_server: RedisServer) -> None:
    limits: dict[str, int | None] = {"requests_per_minute": 6}
    limiters = [Limiter(redis_server.url, period_s=STILL, timeout_s=30) for _ in range(3)]
    clients = [client_of(guarded(limiter=limiter, limits=limits)) for limiter in limiters]
    answers = await asyncio.gather(*(ask(client) for client in clients for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [429] * 6
    assert all("x-m3-degraded" not in answer.headers for answer in answers)
    redis_server.kill()
    answers = [await ask(client, BOB) for client in clients for _ in range(7)]
    assert [a.status_code for a in answers] == ([200] * 6 + [429]) * 3  # each on its own
    assert all(a.headers["x-m3-degraded"] == "redis" for a in answers if a.is_success)
    assert all(a.json()["m3"]["degraded"] == ["redis"] for a in answers if a.is_success)
    for client, limiter in zip(clients, limiters, strict=True):
        await client.aclose()
        await limiter.close()


async def test_caches_are_salted_by_key() -> None:
    backend, predictor = FakeBackend(), FakePredictor()
    salts = {}
    async with client_of(guarded(backend, predictor)) as client:
        for name, key, own in (
            ("alice", ALICE, ""),
            ("alice again", ALICE, ""),
            ("alice's project", ALICE, "project"),
            ("bob", BOB, ""),
            ("bob's project", BOB, "project"),
        ):
            answer = await ask(client, key, m3={"cache_salt": own})
            salts[name] = backend.requests[-1].cache_salt
            assert predictor.asked[-1][2] == salts[name]
            assert answer.headers["x-m3-cache"] == ("memory" if name == "alice again" else "miss")
        assert salts["alice"] == salts.pop("alice again")
        assert len(set(salts.values())) == len(salts)
        # Nobody gets another's salt by naming it.
        await ask(client, BOB, m3={"cache_salt": salts["alice"]})
        assert backend.requests[-1].cache_salt not in salts.values()
    assert all(digest_of_key(ALICE).hex() not in salt for salt in salts.values())


def test_without_a_key_the_salt_is_the_requests_own() -> None:
    assert Caller().cache_salt("project") == "project"


ORIGIN = "https://app.example.org"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


async def test_pages_of_a_listed_origin_may_call_and_read_everything() -> None:
    app = guarded(cors_origins=(ORIGIN,))
    async with client_of(app) as client:
        preflight = await client.options(CHAT, headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in preflight.headers
        for key in (ALICE, "wrong"):
            headers = bearer(key) | {"Origin": ORIGIN}
            answer = await client.post(CHAT, json=chat(), headers=headers)
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert answer.headers["access-control-expose-headers"] == "*"
        other = await client.options(CHAT, headers=PREFLIGHT | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_pages_may_not_call_unless_told_otherwise() -> None:
    async with client_of(guarded()) as client:
        preflight = await client.options(CHAT, headers=PREFLIGHT)
        assert preflight.status_code == 405
        answer = await client.post(CHAT, json=chat(), headers=bearer(ALICE) | {"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_remote_images_count_like_others() -> None:
    """The work of a request is known only once its images are; a refusal before is free."""
    app = guarded(limits={"tokens_per_minute": 1000})
    async with client_of(app) as client:
        body = chat(image_part("https://images.example/a.png"), "What is it?")
        refused = await client.post(CHAT, json=body, headers=bearer(ALICE))
        assert refused.json()["error"]["code"] == "remote_images_disabled"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "1000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0, "0ms"), (0.0201, "21ms"), (1.5, "1.5s"), (60, "1m0s"), (90, "1m30s")],
        # Never 1000ms, 60s or 1m1e-05s.
        *[(0.9999, "1s"), (59.9999, "1m0s"), (119.99, "1m59.99s"), (60 + 1e-11, "1m0s")],
        (60.00001, "1m0.001s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
