"""Images behind https URLs, fetched without being led anywhere else.

The caller names the URL, so the caller could make the service look where only it can look: at its
own machine, its network, its cloud's metadata. Every step takes one of those ways away:

    parse     one strict grammar, here; what it lets through is never parsed by anyone else
    allow     the host stands on the operator's list
    resolve   once; every address must be public, or in a network that the operator named
    connect   to the very address that was checked, under the host's name (Host, SNI, certificate)
    read      no redirects, proxies, cookies or decompression; so many bytes, so many seconds

What arrives is an image if its bytes say so (router/images.py), whatever its media type claims.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from socket import SOCK_STREAM, getaddrinfo

import httpx

from m3_backend.errors import InvalidRequestError
from router.addresses import Address, is_public, parse_address
from router.config import RemoteImageConfig
from router.errors import Code
from router.images import too_many_bytes

LONGEST_URL = 8192
CONNECT_TIMEOUT_S = 2.0  # of one address; then the host's next one is tried
DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://"
    # The last label begins with a letter: no spelling of an IPv4 address does.
    rf"(?P<host>(?:{_LABEL}\.)*(?=[a-z]){_LABEL})"
    rf"(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<path>/(?:[a-z0-9._~!$&'()*+,;=:@/-]|%[0-9a-f]{{2}})*)?"
    rf"(?P<query>\?(?:[a-z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-f]{{2}})*)?",
    re.ASCII | re.IGNORECASE,
)

_LOOKUPS = ThreadPoolExecutor(16, thread_name_prefix="lookup")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A URL in its parts; `target` is path and query as they were given."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"


def parse_url(url: str) -> RemoteUrl:
    """The parts of a URL that leaves no two readings.

    Raises:
        InvalidRequestError: `invalid_image_url`: userinfo, an address instead of a name, a
            backslash, a fragment, anything that is not ASCII or should be percent-encoded.
    """
    found = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    port = int(found["port"] or DEFAULT_PORTS[found["scheme"].lower()]) if found else 0
    if found is None or len(found["host"]) > 253 or not 0 < port < 65536:
        raise InvalidRequestError(
            "The image URL is not one that can be fetched; send "
            "'https://host.name/path?query', percent-encoded, without user name or fragment.",
            code=Code.INVALID_IMAGE_URL,
        )
    target = (found["path"] or "/") + (found["query"] or "")
    return RemoteUrl(found["scheme"].lower(), found["host"].lower(), port, target)


async def system_addresses(host: str, port: int) -> Sequence[str]:
    """What the system's resolver knows, most preferred first.

    On threads of its own: a lookup cannot be interrupted, and names that take their time, which a
    caller may choose, must not take the threads that the rest of the process waits for.
    """
    look_up = partial(getaddrinfo, host, port, type=SOCK_STREAM)
    answers = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, look_up)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class ImageFetcher:
    """Fetches images by URL, under the operator's rules.

    Args:
        max_bytes: of one image.
        resolve: gives the addresses of a host; raises OSError if there are none.

    Raises:
        OSError: `ca_file` cannot be read.
    """

    def __init__(
        self, config: RemoteImageConfig, max_bytes: int, *, resolve: Resolve = system_addresses
    ) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._places = asyncio.Semaphore(config.max_concurrent)
        # Read now, so that a file that is not there is noticed at the start.
        self._own_tls = (
            None if config.ca_file is None else ssl.create_default_context(cafile=config.ca_file)
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._own_tls or httpx.create_ssl_context(trust_env=False)

    async def fetch(self, wanted: Mapping[str, str], patience_s: float) -> dict[str, bytes]:
        """What is behind each URL; all at once. Nothing is known yet about its being an image.

        Args:
            wanted: the request's field, for error messages, by URL.
            patience_s: what is left of the request's time; the configured limit may be shorter.

        Raises:
            InvalidRequestError: `invalid_image_url`, `remote_image_forbidden`,
                `remote_image_unavailable`, `remote_image_timeout`, `image_too_large`.
        """
        total = _Allowance(self._config.max_total_bytes)
        limit_s = max(0.0, min(patience_s, self._config.timeout_s))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    url: group.create_task(self._one(url, param, limit_s, total))
                    for url, param in wanted.items()
                }
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def _one(self, url: str, param: str, limit_s: float, total: _Allowance) -> bytes:
        try:
            remote = parse_url(url)
            if not self._is_listed(remote):
                raise _forbidden()
            async with asyncio.timeout(limit_s), self._places:
                return await self._download(remote, await self._addresses(remote), param, total)
        except InvalidRequestError as error:
            error.param = param
            raise
        except TimeoutError:
            raise InvalidRequestError(
                f"The image did not arrive within {limit_s:.3g} seconds; send it as a data URL.",
                code=Code.REMOTE_IMAGE_TIMEOUT,
                param=param,
            ) from None
        except (httpx.HTTPError, OSError):
            raise _unavailable("its host could not be reached", param) from None

    def _is_listed(self, remote: RemoteUrl) -> bool:
        """Whether the operator's list has this host, at this port, by this scheme."""
        if remote.scheme == "http" and not self._config.allow_http:
            return False
        for entry in self._config.hosts:
            name, _, port = entry.partition(":")
            if remote.port != (int(port) if port else DEFAULT_PORTS[remote.scheme]):
                continue
            if name in ("*", remote.host):
                return True
            if name.startswith("*.") and remote.host.endswith(name[1:]):
                return True
        return False

    async def _addresses(self, remote: RemoteUrl) -> list[Address]:
        """Every address of the host, once all of them are known to be harmless.

        A name that nobody knows is refused like one that leads inside: the difference would tell
        which names exist in here.
        """
        try:
            addresses = [parse_address(a) for a in await self._resolve(remote.host, remote.port)]
        except (OSError, ValueError):
            raise _forbidden() from None
        named = self._config.networks
        if not addresses or not all(
            is_public(address) or any(address in network for network in named)
            for address in addresses
        ):
            raise _forbidden()
        return addresses

    async def _download(
        self, remote: RemoteUrl, addresses: Sequence[Address], param: str, total: _Allowance
    ) -> bytes:
        for address in addresses[:-1]:
            try:
                return await self._get(remote, address, param, total)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._get(remote, addresses[-1], param, total)

    async def _get(
        self, remote: RemoteUrl, address: Address, param: str, total: _Allowance
    ) -> bytes:
        """One GET over a connection of its own: one opened for another name at the same address
        would have been checked against another certificate.
        """
        request = httpx.Request(
            "GET",
            httpx.URL(scheme=remote.scheme, host=str(address), port=remote.port),
            headers={
                "host": remote.authority,
                "accept": "image/*",
                "accept-encoding": "identity",
                "user-agent": "m3-router",
            },
            extensions={
                "sni_hostname": remote.host,
                "target": remote.target.encode(),
                "timeout": {"connect": CONNECT_TIMEOUT_S},
            },
        )
        transport = httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False)
        async with transport:
            response = await transport.handle_async_request(request)
            try:
                if response.status_code != 200:  # redirects too: nobody has checked where they lead
                    raise _unavailable(f"its host answered {response.status_code}", param)
                declared = response.headers.get("content-length", "")
                if declared.isdecimal() and int(declared) > self._max_bytes:
                    raise too_many_bytes(self._max_bytes, param)
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > self._max_bytes:
                        raise too_many_bytes(self._max_bytes, param)
                    total.take(len(piece))
            finally:
                await response.aclose()
        return bytes(body)


class _Allowance:
    """Bytes that all images of a request may have together."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise InvalidRequestError(
                f"The images have more than {self._size:,} bytes together; scale them down.",
                code=Code.IMAGE_TOO_LARGE,
            )


def _forbidden() -> InvalidRequestError:
    return InvalidRequestError(
        "Images are not fetched from this URL's host; it is not one that this service allows, or "
        "it has no public address. Send a data URL.",
        code=Code.REMOTE_IMAGE_FORBIDDEN,
    )


def _unavailable(why: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The image could not be fetched: {why}. Send it as a data URL.",
        code=Code.REMOTE_IMAGE_UNAVAILABLE,
        param=param,
    )
