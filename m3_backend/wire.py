"""The form in which features leave the process: a fixed header and raw little-endian values.

    offset  size  field
         0     4  magic "M3F\\x01" (the last byte is the version)
         4     1  dtype code
         5     3  zero
         8    12  shape: tiles, scale, hidden (uint32 each)
        20    32  the key the value was stored under
        52    32  BLAKE2b of header and payload, keyed with the operator's secret if there is one

Everything about a value is known before it is read, so it is compared, never believed: nothing is
allocated for a value that is not exactly the one that was asked for.
"""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import Tensor

_MAGIC = b"M3F\x01"
_HEADER = struct.Struct("<4sB3x3I32s")
_DIGEST_BYTES = 32
OVERHEAD = _HEADER.size + _DIGEST_BYTES

_CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.int8: 4}  # 4: quantised.py

Shape = tuple[int, int, int]


class WireError(ValueError):
    """A stored value is not what it should be; to be treated as not there."""


def size_of(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of an encoded tensor."""
    tiles, scale, hidden = shape
    return OVERHEAD + tiles * scale * hidden * dtype.itemsize


def encode(key: bytes, features: Tensor, secret: bytes = b"") -> bytes:
    """[tiles, scale, hidden] in main memory → bytes.

    Args:
        key: 32 bytes, under which the value will be stored.
        secret: up to 64 bytes known to all replicas; makes the checksum a signature.
    """
    payload = features.contiguous().view(torch.uint8).numpy().tobytes()
    header = _header(key, (*features.shape,), features.dtype)
    return b"".join((header, _digest(header, payload, secret), payload))


def decode(
    blob: bytes, key: bytes, shape: Shape, dtype: torch.dtype, secret: bytes = b""
) -> Tensor:
    """The tensor in `blob`, which must be the one of this key, shape and type.

    Raises:
        WireError: anything at all differs.
    """
    if len(blob) != size_of(shape, dtype):
        raise WireError("length")
    header = _header(key, shape, dtype)
    if blob[: _HEADER.size] != header:
        raise WireError("header")
    payload = memoryview(blob)[OVERHEAD:]
    if blob[_HEADER.size : OVERHEAD] != _digest(header, payload, secret):
        raise WireError("checksum")
    return torch.frombuffer(bytearray(payload), dtype=dtype).view(shape)


def _header(key: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    return _HEADER.pack(_MAGIC, _CODES[dtype], *shape, key)


def _digest(header: bytes, payload: bytes | memoryview, secret: bytes) -> bytes:
    digest = hashlib.blake2b(header, digest_size=_DIGEST_BYTES, key=secret)
    digest.update(payload)
    return digest.digest()
