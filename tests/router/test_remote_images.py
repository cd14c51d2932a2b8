"""Fetching images: from a real server on this machine, and from nowhere that it should not be.

Names are resolved by the tests; `networks` lets them reach the loopback interface, as it lets an
operator reach an internal store.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.errors import ServiceError
from router.config import RemoteImageConfig, RouterConfig
from router.http import build_app
from router.remote_images import ImageFetcher, Resolve, parse_url, system_addresses
from router.service import RoutingService
from tests.fakes import FakeBackend
from tests.router.support import QUESTION, chat, client_of, image_part, picture
from tests.router.test_addresses import NOT_PUBLIC

HERE = "127.0.0.1"
LOOPBACK = (ip_network("127.0.0.0/8"),)
PNG = picture()

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


def answers(*addresses: str) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


async def nowhere(host: str, port: int) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


TO_HERE = answers(HERE)


def fetcher(resolve: Resolve = TO_HERE, max_bytes: int = 10**6, **config: Any) -> ImageFetcher:
    settings: dict[str, Any] = {"hosts": ("*",), "allow_http": True, "networks": LOOPBACK} | config
    return ImageFetcher(RemoteImageConfig(**settings), max_bytes, resolve=resolve)


async def get(url: str, fetching: ImageFetcher | None = None) -> bytes:
    return (await (fetching or fetcher()).fetch({url: "the.field"}, 30))[url]


async def refusal(url: str, fetching: ImageFetcher | None = None) -> str:
    with pytest.raises(ServiceError) as caught:
        await get(url, fetching)
    assert caught.value.status == 400
    assert caught.value.param == "the.field"
    assert HERE not in caught.value.message
    return str(caught.value.code)


class Server:
    """A real HTTP server; `requests` holds the heads of all requests."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.requests: list[str] = []
        self.port = 0
        self.left = asyncio.Event()  # some client has gone before it had everything

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            await self._reply(reader, writer, head)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(reply: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(reply)
    listening = await asyncio.start_server(server.handle, HERE, 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def replying(body: bytes, status: str = "200 OK", *headers: str) -> Reply:
    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
        writer.write("\r\n".join(lines).encode() + body)

    return reply


def at(server: Server, path: str = "/a.png", name: str = "images.example") -> tuple[str, Any]:
    """A URL of the server, and the list entry that allows it."""
    return f"http://{name}:{server.port}{path}", {"hosts": (f"{name}:{server.port}",)}


async def test_an_image_is_fetched_as_its_host_expects() -> None:
    async with serving(replying(PNG, "200 OK", "Content-Type: text/html")) as server:
        url, config = at(server, "/a%20b//../c.png?x=%2f&y=1")
        assert await get(url, fetcher(**config)) == PNG
    [head] = server.requests
    assert head.startswith("GET /a%20b//../c.png?x=%2f&y=1 HTTP/1.1\r\n")
    assert f"host: images.example:{server.port}\r\n" in head.lower()
    assert "accept-encoding: identity\r\n" in head.lower()
    assert "cookie" not in head.lower()


async def test_images_of_a_request_are_fetched_at_once_and_each_url_once() -> None:
    arrived = asyncio.Semaphore(0)

    async def together(_: Any, writer: asyncio.StreamWriter, head: str) -> None:
        arrived.release()
        while len(server.requests) < 3:
            await asyncio.sleep(0.01)
        await replying(head.split()[1].encode())(_, writer, head)

    async with serving(together) as server:
        urls = [at(server, f"/{n}")[0] for n in range(3)]
        wanted = dict.fromkeys(urls, "f")
        found = await fetcher(hosts=(f"*:{server.port}",)).fetch(wanted, 30)
    assert found == {url: f"/{n}".encode() for n, url in enumerate(urls)}


MALFORMED = r"""
    http:images.example/a  http:/images.example/a  https:///a  https://  http://?a
    https:\\images.example\a  https://images.example\@evil.example/a  https:/\evil.example/a
    https://images.example\.evil.example/a  https://user@images.example/a
    https://user:password@images.example/a  https://images.example@127.0.0.1/a
    https://127.0.0.1#@images.example/a  https://images.example#@127.0.0.1/a
    https://images.example/a#b  https://@images.example/a  https://:@images.example/a
    https://127.0.0.1/a  https://127.0.0.1:443/a  https://127.1/a  https://127.0.1/a
    https://2130706433/a  https://017700000001/a  https://0177.0.0.1/a  https://0x7f.0.0.1/a
    https://0x7f000001/a  https://0x7F.1/a  https://127.0.0.0x1/a  https://0/a  https://0.0.0.0/a
    https://169.254.169.254/latest/meta-data/  https://2852039166/  https://0xa9fea9fe/
    https://0251.0376.0251.0376/  https://169.254.43518/  https://100.100.100.200/
    https://images.example.1/a  https://images.example.0x1/a  https://1.2.3.4./a
    https://[::1]/a  https://[::]/a  https://[::ffff:127.0.0.1]/a  https://[::ffff:7f00:1]/a
    https://[0:0:0:0:0:ffff:127.0.0.1]/a  https://[fe80::1%25eth0]/a  https://[fd00:ec2::254]/a
    https://[64:ff9b::7f00:1]/a  https://[2002:7f00:1::]/a  https://[::1  https://::1/a
    https://images.example./a  https://.images.example/a  https://images..example/a
    https://-images.example/a  https://images-.example/a  https://images.example:/a
    https://images.example:0/a  https://images.example:65536/a  https://images.example:-1/a
    https://images.example:443:80/a  https://images.example:0x1bb/a  https://images.example:٤٤٣/a
    https://images%2eexample/a  https://%31%32%37.0.0.1/a  https://images.example%00.evil/a
    https://images。example/a  https://①②⑦.0.0.1/a  https://ｌocalhost/a  https://exämple.org/a
    https://images.example/ä  https://images.example/%zz  https://images.example/a|b
    https://images.example/a"b  https://images.example/<a>  https://*/a  https://*.example/a
""".split()
UNPRINTABLE = [
    "https://images.example/a b",
    "https://images.example/\na",
    "https://images.example\r\nHost: evil.example\r\n/a",
    "https://images.example/a\r\nX-Injected: 1",
    "https://images.example\t/a",
    "https://images.example/a\0",
    "https://images.example\0.evil.example/a",
    "https://images.example/a\n",
    "https://images.example\u2028/a",
    "https://images.example/" + "a" * 9000,
    "https://" + "a" * 64 + ".example/a",
    "https://" + "a." * 130 + "example/a",
]


@pytest.mark.parametrize("url", [*MALFORMED, *UNPRINTABLE])
async def test_a_url_with_two_readings_is_refused_before_anything_is_looked_up(url: str) -> None:
    assert await refusal(url, fetcher(nowhere)) == "invalid_image_url"


def test_enough_tricks_are_tried() -> None:
    assert len({*MALFORMED, *UNPRINTABLE}) >= 60


LISTED = ("images.example", "*.cdn.example", "store.example:9000")


@pytest.mark.parametrize(
    "url",
    """
    https://evil.example/a  https://images.example.evil.example/a  https://evilimages.example/a
    https://a.images.example/a  https://cdn.example/a  https://evilcdn.example/a  https://localhost/
    https://metadata.google.internal/  https://images.example:8443/a  https://images.example:80/a
    https://store.example/a  https://store.example:9001/a  https://metadata/  https://127.0.0.1.nip/
    http://images.example/a  http://images.example:443/a
    """.split(),
)
async def test_a_host_that_is_not_listed_is_not_even_looked_up(url: str) -> None:
    config = {"hosts": LISTED, "allow_http": False}
    assert await refusal(url, fetcher(nowhere, **config)) == "remote_image_forbidden"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://images.example/a", "images.example", 443),
        ("HTTPS://Images.EXAMPLE:443", "images.example", 443),
        ("https://a.b.cdn.example/a@b:c?d=https://127.0.0.1/", "a.b.cdn.example", 443),
        ("https://store.example:9000/a", "store.example", 9000),
        ("https://cdn.example.cdn.example/", "cdn.example.cdn.example", 443),
    ],
)
async def test_a_listed_host_is_looked_up(url: str, host: str, port: int) -> None:
    asked: list[tuple[str, int]] = []

    async def resolve(name: str, number: int) -> Sequence[str]:
        asked.append((name, number))
        raise OSError("no such name")

    assert await refusal(url, fetcher(resolve, hosts=LISTED)) == "remote_image_forbidden"
    assert asked == [(host, port)]


@pytest.mark.parametrize(
    "addresses",
    [
        ("10.0.0.1",),
        ("127.0.0.1",),
        ("169.254.169.254",),
        ("100.100.100.200",),
        ("168.63.129.16",),
        ("0.0.0.0",),
        ("224.0.0.1",),
        ("::1",),
        ("::",),
        ("fe80::1%eth0",),
        ("fd00:ec2::254",),
        ("ff02::1",),
        ("::ffff:127.0.0.1",),
        ("::ffff:8.8.8.8",),
        ("64:ff9b::a9fe:a9fe",),
        ("2002:7f00:1::1",),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2",),
        ("1.1.1.1", "10.0.0.1"),
        ("2606:4700::1111", "::1"),
        (),
        ("not an address",),
    ],
    ids=" ".join,
)
async def test_a_name_that_leads_inside_is_refused(addresses: tuple[str, ...]) -> None:
    inside = fetcher(answers(*addresses), networks=())
    assert await refusal("https://images.example/a", inside) == "remote_image_forbidden"


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
async def test_no_name_leads_to_any_address_that_is_not_public(address: str) -> None:
    """Nor one that has another address too, which is fine."""
    for addresses in ((address,), ("1.1.1.1", address), (address, "2606:4700::1111")):
        inside = fetcher(answers(*addresses), networks=())
        assert await refusal("https://images.example/a", inside) == "remote_image_forbidden"


SPELLINGS = r"""
    http://127.0.0.1:{p}/a  http://localhost:{p}/a  http://LOCALHOST:{p}/a  http://127.1:{p}/a
    http://2130706433:{p}/a  http://0x7f000001:{p}/a  http://0x7f.1:{p}/a  http://0177.0.0.1:{p}/a
    http://017700000001:{p}/a  http://0:{p}/a  http://0.0.0.0:{p}/a  http://[::1]:{p}/a
    http://[::ffff:127.0.0.1]:{p}/a  http://[::ffff:7f00:1]:{p}/a  http://127.0.0.1.:{p}/a
    http://images.example@127.0.0.1:{p}/a  http://127.0.0.1:{p}@images.example/a
    http://127.0.0.1:{p}\@images.example/a  http://images.example\@127.0.0.1:{p}/a
    http:\\127.0.0.1:{p}\a  http:/127.0.0.1:{p}/a  http://127.0.0.1:{p}#@images.example/a
    http://①②⑦.⓪.⓪.①:{p}/a  http://localtest.me:{p}/a
    https://127.0.0.1:{p}/a  https://localhost:{p}/a
""".replace("\\\\", "\\").split()


async def test_a_server_in_here_is_not_reached_by_any_spelling_of_its_address() -> None:
    """One that is really there, and any host is on the list; names are looked up for real."""

    async def system(host: str, port: int) -> Sequence[str]:
        return [HERE] if host == "localtest.me" else await system_addresses(host, port)

    async with serving(replying(PNG)) as inside:
        for spelling in SPELLINGS:
            anywhere = fetcher(system, hosts=(f"*:{inside.port}", "*"), networks=())
            code = await refusal(spelling.replace("{p}", str(inside.port)), anywhere)
            assert code in ("invalid_image_url", "remote_image_forbidden"), spelling
        assert inside.requests == []
        reached = fetcher(system, hosts=(f"*:{inside.port}",))  # the very server, where it may be
        assert await get(f"http://localtest.me:{inside.port}/a", reached) == PNG


async def test_no_redirect_leads_inside_however_it_is_written() -> None:
    async with serving(replying(PNG)) as inside:
        for spelling in SPELLINGS:
            location = f"Location: {spelling.replace('{p}', str(inside.port))}"
            if not location.isascii():
                continue
            async with serving(replying(b"", "302 Found", location)) as server:
                url, config = at(server)
                assert await refusal(url, fetcher(**config)) == "remote_image_unavailable"
        assert inside.requests == []


async def test_over_the_api_a_forbidden_url_says_nothing_about_the_network() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if host != "inside.example":
            raise OSError("no such name")
        return [HERE]

    service = RoutingService(
        FakeBackend(), None, RouterConfig(), fetcher=fetcher(resolve, networks=())
    )
    said = []
    async with client_of(build_app(service)) as client:
        for host in ("inside.example", "nowhere.example"):
            body = chat(image_part(f"http://{host}/a.png"), QUESTION)
            response = await client.post("/v1/chat/completions", json=body)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "remote_image_forbidden")
            assert error["param"] == "messages[0].content[0].image_url.url"
            said.append(error["message"])
    assert said[0] == said[1]
    assert HERE not in said[0]


async def test_names_inside_cannot_be_told_from_names_that_do_not_exist() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    messages = []
    for resolve in (unknown, answers("10.0.0.1")):
        with pytest.raises(ServiceError) as caught:
            await get("https://images.example/a", fetcher(resolve, networks=()))
        messages.append((caught.value.code, caught.value.message))
    assert messages[0] == messages[1]


async def test_the_address_that_was_checked_is_the_one_that_is_reached() -> None:
    """A name server may answer differently the second time; nobody asks it a second time."""
    lookups = iter([[HERE], ["10.0.0.1"], ["10.0.0.1"]])
    asked: list[str] = []

    async def changing(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return next(lookups)

    async with serving(replying(PNG)) as server:
        url, config = at(server)
        fetching = fetcher(changing, **config)
        assert await get(url, fetching) == PNG
        assert asked == ["images.example"]
        assert await refusal(url, fetching) == "remote_image_forbidden"
        assert len(server.requests) == 1


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with serving(replying(PNG)) as server:
        url, config = at(server)
        assert await get(url, fetcher(answers("127.0.0.9", HERE), **config)) == PNG
        unreachable = fetcher(answers("127.0.0.9", "127.0.0.8"), **config)
        assert await refusal(url, unreachable) == "remote_image_unavailable"


@pytest.mark.parametrize(
    "status",
    ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"],
)
async def test_redirects_are_not_followed(status: str) -> None:
    async with serving(replying(PNG)) as inside:
        location = f"Location: http://images.example:{inside.port}/secret"
        async with serving(replying(PNG, status, location)) as server:
            hosts = (f"*:{server.port}", f"*:{inside.port}")
            code = await refusal(at(server)[0], fetcher(hosts=hosts))
    assert code == "remote_image_unavailable"
    assert inside.requests == []


@pytest.mark.parametrize("status", ["206 Partial", "204 No", "404 Not Found", "500 Oops", "401 No"])
async def test_other_answers_are_not_images(status: str) -> None:
    async with serving(replying(PNG, status)) as server:
        url, config = at(server)
        assert await refusal(url, fetcher(**config)) == "remote_image_unavailable"


async def endless(_: Any, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"2710\r\n" + bytes(10_000) + b"\r\n")
        await writer.drain()


async def test_a_body_without_end_is_cut_at_the_limit() -> None:
    async with serving(endless) as server:
        url, config = at(server)
        assert await refusal(url, fetcher(max_bytes=50_000, **config)) == "image_too_large"
        await asyncio.wait_for(server.left.wait(), 30)


async def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    async with serving(replying(b"", "200 OK")) as server:
        server._reply = replying(bytes(1001))
        url, config = at(server)
        assert await refusal(url, fetcher(max_bytes=1000, **config)) == "image_too_large"
        server._reply = replying(bytes(1000))
        assert await get(url, fetcher(max_bytes=1000, **config)) == bytes(1000)


async def test_images_share_the_bytes_of_a_request() -> None:
    async with serving(replying(bytes(600))) as server:
        urls = {at(server, f"/{n}")[0]: "the.field" for n in range(2)}
        config: dict[str, Any] = {"hosts": (f"*:{server.port}",)}
        assert len(await fetcher(max_total_bytes=1200, **config).fetch(urls, 30)) == 2
        with pytest.raises(ServiceError) as caught:
            await fetcher(max_total_bytes=1199, **config).fetch(urls, 30)
    assert (caught.value.code, caught.value.param) == ("image_too_large", "the.field")


async def test_what_is_compressed_is_not_unpacked() -> None:
    async with serving(replying(b"\x1f\x8b bomb", "200 OK", "Content-Encoding: gzip")) as server:
        url, config = at(server)
        assert await get(url, fetcher(**config)) == b"\x1f\x8b bomb"


async def silence(reader: asyncio.StreamReader, _: Any, __: str) -> None:
    await reader.read()  # until the client has gone
    raise ConnectionError


async def drip(_: Any, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)
    raise ConnectionError


@pytest.mark.parametrize("reply", [silence, drip])
async def test_a_host_that_takes_its_time_is_left(reply: Reply) -> None:
    async with serving(reply) as server:
        url, config = at(server)
        assert await refusal(url, fetcher(timeout_s=0.3, **config)) == "remote_image_timeout"
        await asyncio.wait_for(server.left.wait(), 30)


async def never(host: str, port: int) -> Sequence[str]:
    await asyncio.Event().wait()
    return ()


async def test_a_name_server_that_does_not_answer_is_left() -> None:
    slow = fetcher(never, timeout_s=0.05)
    assert await refusal("https://images.example/a", slow) == "remote_image_timeout"


async def test_slow_lookups_do_not_take_the_threads_of_others() -> None:
    """Nor do others take theirs: here the process's own are all busy."""
    busy = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    waiting = asyncio.ensure_future(asyncio.to_thread(busy.wait, 60))
    try:
        async with asyncio.timeout(30):
            assert HERE in await system_addresses("localhost", 80)
        assert not waiting.done()
    finally:
        busy.set()
        await waiting


async def test_a_request_whose_time_is_over_fetches_nothing() -> None:
    with pytest.raises(ServiceError, match="within 0 seconds") as caught:
        await fetcher(never).fetch({"https://images.example/a": "f"}, -3.0)
    assert caught.value.code == "remote_image_timeout"


async def test_a_request_waits_no_longer_than_it_has_time() -> None:
    with pytest.raises(ServiceError) as caught:
        await fetcher(never, timeout_s=1e9).fetch({"https://images.example/a": "f"}, 0.05)
    assert caught.value.code == "remote_image_timeout"


async def garbage(_: Any, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(b"\x00\xff not HTTP at all\r\n\r\n")


async def cut(_: Any, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")


async def many_headers(_: Any, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 300_000)


@pytest.mark.parametrize("reply", [garbage, cut, many_headers])
async def test_what_is_no_http_is_not_an_error_of_ours(reply: Reply) -> None:
    async with serving(reply) as server:
        url, config = at(server)
        assert await refusal(url, fetcher(**config)) == "remote_image_unavailable"


async def test_one_failure_ends_the_other_downloads() -> None:
    async with serving(silence) as server:
        url, config = at(server)
        wanted = {url: "first", "https://127.0.0.1/": "second"}
        with pytest.raises(ServiceError) as caught:
            await fetcher(**config).fetch(wanted, 30)
        assert (caught.value.code, caught.value.param) == ("invalid_image_url", "second")


async def test_proxies_in_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(replying(PNG)) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        url, config = at(server)
        assert await get(url, fetcher(**config)) == PNG


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for images.example, and its key, in one PEM file."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-subj /CN=images.example -addext subjectAltName=DNS:images.example -out"
    )
    subprocess.run([*command.split(), pem, "-keyout", key], check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


async def test_https_is_for_the_name_and_not_for_the_address(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    named: list[str | None] = []
    tls.sni_callback = lambda _, name, __: named.append(name)  # type: ignore[assignment]
    async with serving(replying(PNG), tls) as server:
        hosts = (f"*:{server.port}",)
        good = f"https://images.example:{server.port}/a"
        trusting = fetcher(hosts=hosts, ca_file=str(certificate))
        assert await get(good, trusting) == PNG
        assert named == ["images.example"]
        # Another name at the same address, while its certificate is for the first one.
        other = f"https://other.example:{server.port}/a"
        assert await refusal(other, trusting) == "remote_image_unavailable"
        # And a certificate that nobody vouches for.
        assert await refusal(good, fetcher(hosts=hosts)) == "remote_image_unavailable"
        assert len(server.requests) == 1


PIECES = st.sampled_from(
    [*"aA0._-~:/?#@%[]\\&=;, \t\n\0é。", "//", "http:", "https://", "%2f", "%00", "example.org"]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_other_parsers_read_what_is_accepted_as_we_do(rest: str) -> None:
    """The standard library's and httpx's. (Ours alone decides; they are a second opinion.)"""
    url = f"https://{rest}"
    try:
        parts = parse_url(url)
    except ServiceError as error:
        assert error.code == "invalid_image_url"
        return
    theirs, standard = httpx.URL(url), urlsplit(url)
    assert parts.host == theirs.host == standard.hostname
    assert parts.port == (theirs.port or 443) == (standard.port or 443)
    assert parts.target == (standard.path or "/") + (f"?{standard.query}" if "?" in url else "")
    assert not theirs.userinfo


def test_a_certificate_file_that_is_not_there_is_noticed_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fetcher(ca_file=str(tmp_path / "none.pem"))


def test_the_parts_of_a_url() -> None:
    parts = parse_url("http://Images.Example:80/a?b")
    assert (parts.scheme, parts.host, parts.port) == ("http", "images.example", 80)
    assert (parts.target, parts.authority) == ("/a?b", "images.example")
    assert parse_url("https://a.example?q").target == "/?q"
    assert parse_url("https://a.example:8443").authority == "a.example:8443"
