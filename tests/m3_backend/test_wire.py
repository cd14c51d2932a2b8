"""The wire format: what was written comes back, and nothing else is ever accepted."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3_backend import wire

KEY = hashlib.sha256(b"image").digest()
OTHER_KEY = hashlib.sha256(b"another").digest()
SHAPE = (2, 9, 8)


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(SHAPE, generator=torch.manual_seed(0)) * 9).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("secret", [b"", b"shared"])
def test_what_was_written_comes_back(dtype: torch.dtype, secret: bytes) -> None:
    blob = wire.encode(KEY, features(dtype), secret)
    assert len(blob) == wire.size_of(SHAPE, dtype)
    assert torch.equal(wire.decode(blob, KEY, SHAPE, dtype, secret), features(dtype))


@given(st.data())
@settings(max_examples=200)
def test_no_changed_bit_is_accepted(data: st.DataObject) -> None:
    blob = bytearray(wire.encode(KEY, features()))
    position = data.draw(st.integers(0, len(blob) - 1))
    blob[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(wire.WireError):
        wire.decode(bytes(blob), KEY, SHAPE, torch.float32)


@given(st.binary(max_size=2000))
def test_no_other_bytes_are_accepted(blob: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(blob, KEY, SHAPE, torch.float32)


@pytest.mark.parametrize("cut", [1, 100, 500])
def test_no_truncation_or_extension_is_accepted(cut: int) -> None:
    blob = wire.encode(KEY, features())
    for changed in (blob[:-cut], blob + bytes(cut)):
        with pytest.raises(wire.WireError):
            wire.decode(changed, KEY, SHAPE, torch.float32)


def test_a_sound_value_in_the_wrong_place_is_refused() -> None:
    blob = wire.encode(KEY, features())
    with pytest.raises(wire.WireError):
        wire.decode(blob, OTHER_KEY, SHAPE, torch.float32)
    with pytest.raises(wire.WireError):  # as many bytes, another arrangement
        wire.decode(blob, KEY, (1, 18, 8), torch.float32)
    half = wire.encode(KEY, features(torch.bfloat16))
    with pytest.raises(wire.WireError):
        wire.decode(half, KEY, SHAPE, torch.float16)


def test_without_the_secret_nobody_can_write_an_acceptable_value() -> None:
    for forged in (wire.encode(KEY, features()), wire.encode(KEY, features(), b"guess")):
        with pytest.raises(wire.WireError):
            wire.decode(forged, KEY, SHAPE, torch.float32, b"shared")
