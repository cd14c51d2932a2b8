"""Which requests are drawn for shadow labels, how probable that was, and what goes to the queue."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from m3_backend.messages import ImageInput, ImageSlot
from predictor.errors import RecordsError
from predictor.features import image_vector
from predictor.predictor import Prediction
from router.config import RouterConfig, ShadowConfig
from router.draws import Draws, is_drawn, order_of, read_order
from router.service import RoutingService
from router.trace import Trace
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import chat, image_part, picture

ALL = {"uniform_share": 1.0}


class Looking(FakePredictor):
    def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
        found = super().predict(image, question, salt)
        return Prediction(found.p_success, None, image=np.arange(3, dtype=np.float32))


class Numbers(random.Random):
    """Chance that is said beforehand."""

    def __init__(self, *numbers: float) -> None:
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0)


async def asked(
    body: dict[str, Any], config: dict[str, float], *chances: float, predictor: Any = None
) -> Trace:
    """A request that was answered, and perhaps drawn."""
    draws = Draws(ShadowConfig(**config), Numbers(*chances))  # type: ignore[arg-type]
    service = RoutingService(FakeBackend(), predictor, RouterConfig(), draws=draws)
    trace = Trace("r" * 32)
    answer = await service.handle(json.dumps(body).encode(), trace)
    async for _ in answer:
        pass
    service.close()
    return trace


async def test_the_uniform_stratum_is_blind() -> None:
    for chance, stratum in ((0.09, "uniform"), (0.11, None)):
        trace = await asked(chat(), {"uniform_share": 0.1, "near": 0.0}, chance)
        assert (None if trace.draw is None else trace.draw.stratum) == stratum
        if trace.draw is not None:
            assert trace.draw.probability == 0.1


async def test_close_choices_are_drawn_besides_and_the_probability_says_so() -> None:
    """The second best scale is at most 0.5 behind: this one is close, and at 0 none is."""
    config = {"uniform_share": 0.1, "near": 0.5, "near_share": 0.5}
    trace = await asked(chat(), config, 0.5, predictor=Looking())
    assert trace.draw is not None
    assert (trace.draw.stratum, trace.draw.probability) == ("threshold", 0.1 + 0.9 * 0.5)
    config["near"] = 0.0
    assert (await asked(chat(), config, 0.5, predictor=Looking())).draw is None


async def test_what_the_service_did_not_choose_is_not_drawn() -> None:
    for body in (chat(model="m3-9"), chat(image_part(), image_part(), "Which?")):
        assert (await asked(body, ALL, predictor=Looking())).draw is None


async def test_an_order_has_the_text_and_never_the_image() -> None:
    body = chat(image_part(), "What colour is the square?", m3={"cache_salt": "salt"})
    trace = await asked(body, ALL, 0.5, predictor=Looking())
    assert is_drawn(trace)
    assert trace.draw is not None
    assert trace.draw.request.images[0].data == b""  # not held any longer
    order = read_order(order_of(trace))
    request = order.request
    assert request.cache_salt == "salt"
    assert request.turns[0].content == (ImageSlot(0), "What colour is the square?")
    assert (request.images[0].digest, request.images[0].data) == (
        trace.draw.request.images[0].digest,
        b"",
    )
    assert order.label["features"].tolist() == [0.0, 1.0, 2.0]
    assert order.label["stratum"] == "uniform"
    assert order.label["scale"] in (1, 9, 36, 144, 576)
    assert order.at == pytest.approx(trace.wall_ns / 1e9)


async def test_without_a_predictor_the_picture_is_looked_at_for_the_label() -> None:
    trace = await asked(chat(image_part(picture()), "What?"), ALL, 0.5)
    order = read_order(order_of(trace))
    assert np.array_equal(order.label["features"], image_vector(picture()))
    assert order.label["p_success"] is None
    assert order.label["reason"] == "no_predictor"


async def test_a_request_that_failed_is_not_labelled() -> None:
    trace = await asked(chat(), ALL, 0.5)
    trace.code = "replica_lost"
    assert not is_drawn(trace)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"image": 1}', b"\xff"])
def test_what_is_no_order_is_refused(data: bytes) -> None:
    with pytest.raises(RecordsError):
        read_order(data)
