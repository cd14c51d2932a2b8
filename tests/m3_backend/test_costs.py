"""Costs against the paper's table and fits against lines that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.costs import CostModel, ModelShape, TowerShape, fit_affine, fit_milliseconds
from m3_backend.shapes import find_shape

VICUNA_7B = find_shape("llava-1.5-7b")


@pytest.mark.parametrize(
    ("scale", "teraflops"), [(576, 8.0), (144, 2.2), (36, 0.9), (9, 0.5), (1, 0.4)]
)
def test_operations_are_those_of_the_papers_table(scale: int, teraflops: float) -> None:
    """M3's efficiency table (language model only, 30 tokens of text), from the shape alone."""
    assert VICUNA_7B.prefill_flops(scale + 30) / 1e12 == pytest.approx(teraflops, rel=0.1)


def test_the_kv_cache_of_one_token_of_a_7b_model_is_half_a_mebibyte() -> None:
    assert VICUNA_7B.kv_bytes(1) == 512 * 1024
    assert VICUNA_7B.kv_bytes(10, bytes_per_value=4) == 10 * 1024 * 1024


def test_one_token_behind_others_is_counted_by_hand() -> None:
    """Two layers of width 4: 4·(4+4+4+4) + 3·4·8 = 160 weights each, a head of 4·10."""
    shape = ModelShape(2, 4, 8, heads=2, kv_heads=2, head_dim=2, vocabulary=10)
    assert shape.weights_per_layer() == 160
    # Three requests that hold 50 tokens in all: products over 160 weights, two over the 50.
    assert shape.step_flops(3, 50) == 2 * (2 * 3 * 160 + 4 * 50 * 4) + 2 * 3 * 40
    assert shape.step_bytes(50) == 2 * (2 * 160 + 40) + 2 * 2 * 4 * 50 * 2
    # A prompt of one token is such a step; of three, the first two need keys and values at the end.
    assert shape.last_logits_flops(1) == shape.step_flops(1, 1)
    first_layer = 2 * 3 * 160 + 4 * (1 + 2 + 3) * 4
    last_layer = 2 * 2 * (4 * 4 * 2) + 2 * 160 + 4 * 3 * 4
    assert shape.last_logits_flops(3) == first_layer + last_layer + 2 * 40


def test_the_last_logits_take_almost_all_of_a_prefill_without_its_head() -> None:
    head = 2 * VICUNA_7B.hidden * VICUNA_7B.vocabulary
    body = VICUNA_7B.prefill_flops(606) - 606 * head
    assert 0.93 * body < VICUNA_7B.last_logits_flops(606) < 0.98 * body


def test_clip_large_takes_as_many_operations_as_its_parameters_say() -> None:
    """ViT-L/14 at 336 px: 304 million weights in 24 layers, two operations for each of 577 places,
    and attention.
    """
    tower = TowerShape(24, 1024, 4096, 576, 588, 4096)
    attention = 24 * 4 * 577**2 * 1024
    projector = 2 * 576 * (1024 * 4096 + 4096 * 4096)
    dense = tower.encode_flops() - attention - projector
    assert dense / (2 * 577) == pytest.approx(302e6, rel=0.01)
    assert tower.encode_flops(5) == 5 * tower.encode_flops()


@given(st.floats(0, 100), st.floats(0.001, 10))
def test_a_line_is_found_again(base: float, slope: float) -> None:
    tokens = [16, 64, 160, 640]
    fitted = fit_affine(tokens, [base + slope * x for x in tokens])
    assert fitted == (pytest.approx(base, abs=1e-6), pytest.approx(slope, rel=1e-6))


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(0.01, 1e4)), min_size=1, max_size=8))
def test_costs_are_never_negative(points: list[tuple[int, float]]) -> None:
    base, slope = fit_affine([x for x, _ in points], [y for _, y in points])
    assert base >= 0 and slope >= 0


def test_a_slow_long_prompt_does_not_hide_what_short_ones_cost() -> None:
    base, slope = fit_affine([16, 64, 160, 320, 640], [3.4, 5.3, 10.5, 21, 76])
    assert base + 16 * slope == pytest.approx(3.4, rel=0.25)


def test_a_fit_says_how_far_off_it_is() -> None:
    exact = fit_milliseconds(
        [31, 39, 66, 174, 606], [3.1 + 0.1 * x for x in (31, 39, 66, 174, 606)]
    )
    assert exact.error == pytest.approx(0, abs=1e-9)
    assert exact.at(100) == pytest.approx(13.1)
    # Two measurements of one prompt, 9 and 11 ms. Weighted by 1/y², the best constant is
    # (9/81 + 11/121) / (1/81 + 1/121) = 990/101, off by 9/101 of the one and 11/101 of the other.
    apart = fit_milliseconds([10, 10], [9.0, 11.0])
    assert apart.at(10) == pytest.approx(990 / 101)
    assert apart.error == pytest.approx((((9 / 101) ** 2 + (11 / 101) ** 2) / 2) ** 0.5)


def test_a_request_pays_for_encoding_only_on_a_miss() -> None:
    costs = CostModel(encode_ms=40, prefill_base_ms=3, prefill_token_ms=0.1, decode_token_ms=5)
    assert costs.request_ms(100, 1) == pytest.approx(53)
    assert costs.request_ms(100, 3, images=2, cached=False) == pytest.approx(103)
    assert costs.request_ms(100, 3, cached=True) == pytest.approx(23)
