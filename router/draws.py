"""Which requests get a shadow label, and what a replica needs to make it.

Every request about one image whose scale the service chose is drawn with the same small probability
(the uniform stratum, from which regret is estimated); those close to another choice may be drawn
besides, because that is where a predictor has most to learn. What is drawn goes to a queue in
Redis when its answer is out: the conversation's text, never the image, whose features a replica
has in its cache. A label holds no text.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m3_backend.messages import GenerationRequest, ImageInput, ImageSlot, Turn
from predictor.errors import RecordsError
from predictor.features import image_vector
from predictor.label_records import NEAR, UNIFORM
from predictor.routing_records import IMAGE_FEATURES, describe_question, question_columns
from predictor.selection import margin
from router.config import ShadowConfig
from router.evidence import Draw, Evidence
from router.trace import OK, Trace


class Draws:
    """Draws requests.

    Args:
        rng: where chance comes from.
    """

    def __init__(self, config: ShadowConfig, rng: random.Random | None = None) -> None:
        self._config, self._rng = config, rng or random.Random()

    def draw(
        self,
        request: GenerationRequest,
        evidence: Evidence,
    ) -> Draw | None:
        """Perhaps this one."""
        if len(request.images) != 1 or evidence.bound is None:
            return None
        uniform, besides = self._config.uniform_share, 0.0
        [seen] = evidence.images
        case, price = seen.case, evidence.price
        if case.p_success is not None and price is not None:
            shares = [tokens / case.tokens[-1] for tokens in case.tokens]
            if margin(case.p_success, shares, price) < self._config.near:
                besides = self._config.near_share
        probability = uniform + (1 - uniform) * besides
        chance = self._rng.random()
        if chance >= probability:
            return None
        if seen.features is not None:
            request = without_bytes(request)
        return Draw(UNIFORM if chance < uniform else NEAR, probability, request)


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What a replica needs to make a label.

    Args:
        request: its image has no bytes.
        at: Unix time of its arrival, seconds.
        label: the columns of the label that are known before it is made.
    """

    request: GenerationRequest
    at: float
    label: dict[str, Any]


def is_drawn(trace: Trace) -> bool:
    """Whether a request that is over goes to the queue."""
    return trace.draw is not None and trace.code == OK


def order_of(trace: Trace) -> bytes:
    """A drawn request that was answered, as it stands in the queue. CPU work."""
    draw, evidence, decision = trace.draw, trace.evidence, trace.decision
    assert draw is not None
    assert evidence is not None
    assert decision is not None
    [seen], [choice], [image] = evidence.images, decision.images, draw.request.images
    vector = seen.features if seen.features is not None else image_vector(image.data)
    label = {
        "request_id": trace.request_id,
        "at": round(trace.wall_ns / 1e3),
        "stratum": draw.stratum,
        "probability": draw.probability,
        "pressure": trace.pressure,
        "served": evidence.model.name,
        "model_identity": evidence.model.identity,
        "processor": evidence.model.processor,
        "grid_side": evidence.model.ladder.grid_side,
        "predictor": trace.predictor,
        "bound": evidence.bound,
        "tightened_to": decision.tightened_to,
        "target": evidence.target,
        "certified_bounds": [bound for bound, _ in evidence.certified],
        "certified_prices": [price for _, price in evidence.certified],
        "scale": choice.scale,
        "reason": choice.reason.value,
        "p_success": seen.case.p_success,
        "image": seen.name,
        "image_features": IMAGE_FEATURES,
        **question_columns(describe_question(evidence.question)),
    }
    order = {
        "turns": [
            [turn.role, [_told(part) for part in turn.content]] for turn in draw.request.turns
        ],
        "image": [image.digest, image.width, image.height],
        "salt": draw.request.cache_salt,
        "features": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        "label": label,
    }
    return json.dumps(order, separators=(",", ":")).encode()


def read_order(data: bytes) -> Order:
    """What `order_of` wrote. Raises RecordsError."""
    try:
        order = json.loads(data)
        digest, width, height = order["image"]
        label = dict(order["label"])
        label["features"] = np.frombuffer(base64.b64decode(order["features"]), "<f4")
        turns = tuple(
            Turn(role, tuple(ImageSlot(0) if part is None else part for part in content))
            for role, content in order["turns"]
        )
        request = GenerationRequest(
            request_id=label["request_id"],
            turns=turns,
            images=(ImageInput(b"", digest, width, height),),
            scales=(label["scale"],),
            cache_salt=order["salt"],
        )
        return Order(request, label["at"] / 1e6, label)
    except (ValueError, KeyError, TypeError) as error:
        raise RecordsError("Not a request to be labelled.") from error


def without_bytes(request: GenerationRequest) -> GenerationRequest:
    """The same without its images' files, which may be large and are held for as long."""
    return replace(request, images=tuple(replace(image, data=b"") for image in request.images))


def _told(part: str | ImageSlot) -> str | None:
    return part if isinstance(part, str) else None
