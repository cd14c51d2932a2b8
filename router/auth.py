"""API keys: who may ask, from a file or an environment variable.

A key is 256 random bits, so its SHA-256 is all that has to be kept, and gives nothing away: slow
hashes such as bcrypt protect passwords that people choose, of which there are few enough to try.
Here they would only cost every request a tenth of a second. Keys that somebody chose are refused if
they are short.

A key file is a YAML list, written by `m3-router keys new`:

    - name: alice                # in logs; no two keys share one
      sha256: 9f86d081884c7d65…  # of the key itself, which is not kept anywhere
      requests_per_minute: 600   # instead of router.access.requests_per_minute; null is unlimited
      tokens_per_minute: 200000
    - name: prometheus
      sha256: 60303ae22b998861…
      operator: true             # may also see what concerns all callers: /metrics
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from m3_backend.errors import ServiceError
from router.config import AccessConfig

logger = logging.getLogger("m3_router.access")

PREFIX = "sk-m3-"
SHORTEST_KEY, LONGEST_KEY = 32, 512  # characters
CHECK_EVERY_S = 1.0
ENVIRONMENT = "env:"
HASHED = "sha256:"


class KeysError(ServiceError):
    """Keys that cannot be used. Nothing starts with them; a running service keeps the old ones."""

    default_code = "invalid_keys"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known about one API key.

    Args:
        digest: SHA-256 of the key.
        operator: may see what concerns all callers.
        requests_per_minute, tokens_per_minute: None is unlimited.
    """

    name: str
    digest: bytes
    operator: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class KeyEntry(BaseModel):
    """One entry of a key file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    operator: bool = False
    requests_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)


_ENTRIES = TypeAdapter(list[KeyEntry])


class KeyRing:
    """The keys in force. Raises KeysError where two have the same name or are the same key."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)
        for what in ("name", "digest"):
            if len({getattr(key, what) for key in self.keys}) < len(self.keys):
                raise KeysError(f"Two API keys have the same {what}; give each one its own.")

    def find(self, presented: str) -> Key | None:
        """The key that was presented, compared with every key in the same time whichever it is."""
        digest = digest_of_key(presented)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of_key(key: str) -> bytes:
    """What is kept of a key."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def require_usable(key: str, place: str) -> str:
    """The key. Raises KeysError if somebody may have chosen it, or if it could never be presented.

    Args:
        place: where it stands, for the message, which never repeats the key.
    """
    if len(key) < SHORTEST_KEY:
        raise KeysError(
            f"{place}: the API key has fewer than {SHORTEST_KEY} characters; `m3-router keys new` "
            "makes one that cannot be guessed."
        )
    if len(key) > LONGEST_KEY or not (key.isascii() and key.isprintable()):
        raise KeysError(
            f"{place}: the API key has more than {LONGEST_KEY} characters, or some that are not "
            "printable ASCII; clients could not send it."
        )
    return key


def read_key_file(path: Path, defaults: AccessConfig | None = None) -> KeyRing:
    """The keys in a file.

    Args:
        defaults: limits of keys whose entries do not name them.

    Raises:
        KeysError: it cannot be read, or an entry is wrong. No message repeats a hash.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KeysError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise KeysError(f"{path}: not a text file.") from None
    return parse_keys(text, str(path), defaults or AccessConfig())


def parse_keys(text: str, source: str, defaults: AccessConfig) -> KeyRing:
    """The keys in a key file's text; `source` opens every error message.

    Raises:
        KeysError: an entry is wrong. No message repeats a hash.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date or a number that cannot be
        raise KeysError(f"{source}: not valid YAML; see `m3-router keys --help`.") from None
    try:
        entries = _ENTRIES.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        at = ".".join(str(step) for step in first["loc"]) or "the file"
        raise KeysError(f"{source}: {at}: {first['msg']}.") from None
    return KeyRing(_key(entry, defaults) for entry in entries)


def _key(entry: KeyEntry, defaults: AccessConfig) -> Key:
    limits: dict[str, Any] = {
        field: getattr(entry if field in entry.model_fields_set else defaults, field)
        for field in ("requests_per_minute", "tokens_per_minute")
    }
    return Key(entry.name, bytes.fromhex(entry.sha256), entry.operator, **limits)


def read_environment(
    variable: str, defaults: AccessConfig, environ: Mapping[str, str] = os.environ
) -> KeyRing:
    """The keys in an environment variable: `name=key` or `name=sha256:…`, separated by commas or
    white space.

    Raises:
        KeysError: it is not set, or a pair is wrong. No message repeats a key.
    """
    pairs = re.split(r"[,\s]+", environ.get(variable, "").strip(", \t\r\n"))
    if pairs == [""]:
        raise KeysError(f"router.access.keys: the environment variable {variable} is not set.")
    keys = []
    for number, pair in enumerate(pairs, start=1):
        name, _, value = pair.partition("=")
        hashed = value.removeprefix(HASHED)
        if hashed == value:
            place = f"{variable}: entry {number}"
            hashed = digest_of_key(require_usable(value, place)).hex() if value else ""
        try:
            keys.append(_key(KeyEntry(name=name, sha256=hashed), defaults))
        except ValidationError:
            raise KeysError(
                f"{variable}: entry {number} is not name=key or name=sha256:<64 hex digits>."
            ) from None
    return KeyRing(keys)


class KeyStore:
    """Keys that may change while the service runs.

    Args:
        read: gives all keys; raises KeysError.
        signature: changes when what `read` reads does; raises OSError if it is not there.
        clock: seconds, monotonic.

    Raises:
        KeysError: the keys cannot be read now.
    """

    def __init__(
        self,
        read: Callable[[], KeyRing],
        signature: Callable[[], object] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._signature, self._clock = read, signature, clock
        self._seen = self._signature_now()
        self._ring = read()
        self._check_at = clock() + CHECK_EVERY_S

    async def find(self, presented: str) -> Key | None:
        """The key that was presented, if it is in force."""
        if self._clock() >= self._check_at:
            self._check_at = math.inf  # the others go on with what is there
            try:
                await self._refresh()
            finally:
                self._check_at = self._clock() + CHECK_EVERY_S
        return self._ring.find(presented)

    async def _refresh(self) -> None:
        """Takes over keys that have changed; those that cannot be read change nothing."""
        signature = self._signature_now()
        if signature == self._seen:
            return
        try:
            self._ring = await asyncio.to_thread(self._read)
        except KeysError as error:
            logger.error(
                "the API keys have changed and cannot be used; the old ones stay: %s", error
            )
        else:
            logger.warning("the API keys have changed; %d are in force", len(self._ring.keys))
        self._seen = signature  # not before: if this request is cancelled, the next one reads them

    def _signature_now(self) -> object:
        try:
            return self._signature()
        except OSError:
            return None


def open_keys(config: AccessConfig) -> KeyStore | None:
    """The configured keys, or None where nobody is asked for one.

    Raises:
        KeysError: they are configured and cannot be read.
    """
    if config.keys == "none":
        return None
    if config.keys.startswith(ENVIRONMENT):
        variable = config.keys.removeprefix(ENVIRONMENT)
        return KeyStore(lambda: read_environment(variable, config))
    path = Path(config.keys)

    def signature() -> object:
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    return KeyStore(lambda: read_key_file(path, config), signature)
