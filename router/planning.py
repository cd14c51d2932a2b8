"""The CPU work of routing: understand the request, look at its images, predict, decide.

Nothing here waits for anybody, and nothing is changed but the request's own trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from m3_backend.errors import InvalidImageError
from m3_backend.messages import ImageInput, ModelInfo
from m3_backend.scales import image_tokens
from predictor.predictor import Prediction
from router.admission import Look, bounds_under_load
from router.config import RouterConfig
from router.conversation import Conversation, read_conversation, read_images
from router.evidence import Evidence, evidence
from router.in_force import InForce
from router.policy import Decision, ImageCase, Limits, decide_under_load, limits_of
from router.pools import fitted
from router.ports import PredictorPort
from router.schemas import ChatRequest
from router.stages import Stage, Stages
from router.trace import Trace

# The router has no tokenizer. Text costs the same at every scale, so a rough count shifts all
# estimates alike; four bytes a token is what English text comes to.
TEXT_BYTES_PER_TOKEN = 4
# Tokens of the context kept free of images: for an answer and for the prompt's template.
ANSWER_ROOM = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood, before anybody has looked at its images."""

    chat: ChatRequest
    limits: Limits
    look: Look
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that was decided on, before any replica has seen it.

    Args:
        salt: of the caller's caches.
        cases: what the decision was made from, one per image.
        text_tokens: of the prompt without its images, roughly.
        cost_ms: estimated replica time to the first token, features not cached, given the image
            tokens of all images together.
        predictor: version of the predictor, or None.
        evidence: what its record will tell of how it was decided.
    """

    chat: ChatRequest
    conversation: Conversation
    images: tuple[ImageInput, ...]
    salt: str
    cases: tuple[ImageCase, ...]
    decision: Decision
    text_tokens: int
    cost_ms: Callable[[int], float]
    info: ModelInfo
    predictor: str | None
    evidence: Evidence


class Planner:
    """Thread-safe.

    Args:
        in_force: what the next request is decided by.
        fetches: whether there may be images to fetch.
    """

    def __init__(
        self, config: RouterConfig, in_force: Callable[[], InForce], *, fetches: bool
    ) -> None:
        self._config, self._in_force, self._fetches = config, in_force, fetches

    def plan(
        self, read: Callable[[], ChatRequest], info: ModelInfo, trace: Trace, look: Look
    ) -> Plan | Asked:
        """All of it in one go; if something has to be fetched in between, the half before that, for
        `decide` to go on from.

        Raises:
            ServiceError: whatever is wrong with the request.
        """
        with trace.stages.of(Stage.PARSE):
            chat = read()
            trace.priority = chat.m3.priority
            look.require(chat.m3.priority, self._config.load)
            limits = limits_of(chat.model, chat.m3, info.ladder, self._config.max_regret)
            asked = Asked(chat, limits, look, read_conversation(chat.messages, self._config.images))
        if self._fetches and asked.conversation.remote():
            return asked
        return self.decide(asked, info, trace)

    def decide(
        self,
        asked: Asked,
        info: ModelInfo,
        trace: Trace,
        fetched: Mapping[str, bytes] | None = None,
    ) -> Plan:
        """Looks at the images, predicts and decides.

        Args:
            fetched: images behind remote URLs, by URL.

        Raises:
            ServiceError: an image that is none, or not what the limits allow.
        """
        chat, conversation, limits = asked.chat, asked.conversation, asked.limits
        in_force = self._in_force()
        predictor = in_force.predictor
        with trace.stages.of(Stage.IMAGES):
            images = read_images(conversation, self._config.images, fetched)
        salt = trace.caller.cache_salt(chat.m3.cache_salt)
        predict = partial(_predict, predictor, trace.stages, conversation.question, salt)
        pairs = tuple(zip(images, conversation.pictures, strict=True))
        predicted = [predict(image, picture.param) for image, picture in pairs]
        cases = tuple(
            ImageCase(
                tokens=_tokens_per_scale(info, image),
                p_success=None if prediction is None else prediction.p_success,
                detail=picture.detail,
            )
            for (image, picture), prediction in zip(pairs, predicted, strict=True)
        )
        text_tokens = conversation.text_bytes() // TEXT_BYTES_PER_TOKEN
        cost_ms = _cost_of(info, text_tokens, len(images))
        room = info.max_context - text_tokens - ANSWER_ROOM
        with trace.stages.of(Stage.DECIDE):
            bounds = self._bounds(in_force, asked)

            def rule(
                cases: Sequence[ImageCase], threshold: Callable[[float], float | None]
            ) -> Decision:
                free = decide_under_load(
                    cases, info.ladder, limits, bounds, threshold, cost_ms, room
                )
                return fitted(free, cases, info.ladder, info.pools, cost_ms, room)

            decision = rule(cases, in_force.threshold)
            if limits.scale is None:
                stands = in_force.standing(bounds[-1] / len(images))
                decision = replace(decision, tightened_to=stands.tightened_to)
        return Plan(
            chat,
            conversation,
            images,
            salt,
            cases,
            decision,
            text_tokens,
            cost_ms,
            info,
            in_force.version,
            evidence(
                info,
                limits,
                bounds,
                in_force.threshold,
                conversation.question,
                images,
                cases,
                predicted,
                rule,
                target=in_force.target,
                certified=in_force.certified,
            ),
        )

    def _bounds(self, in_force: InForce, asked: Asked) -> tuple[float, ...]:
        """The bounds to decide by, strict to loose; what the caller has said stands alone."""
        own = asked.limits.max_regret
        if not in_force.certified or not asked.limits.services_own:
            return (own,)
        certified = [bound for bound, _ in in_force.certified]
        return bounds_under_load(own, certified, self._config.load, asked.look.held)


def _predict(
    predictor: PredictorPort | None,
    stages: Stages,
    question: str,
    salt: str,
    image: ImageInput,
    param: str,
) -> Prediction | None:
    if predictor is None:
        return None
    began_s = stages.now()
    try:
        prediction = predictor.predict(image, question, salt)
    except InvalidImageError as error:
        stages.add(Stage.FEATURES, began_s, stages.now())
        raise InvalidImageError(error.message, param=param) from None
    stages.add(Stage.FEATURES, began_s, began_s + prediction.features_s)
    stages.add(Stage.PREDICT, began_s + prediction.features_s, stages.now())
    return prediction


def _tokens_per_scale(info: ModelInfo, image: ImageInput) -> tuple[int, ...]:
    return tuple(
        image_tokens(info.ladder, scale, image.width, image.height, info.tiling)
        for scale in info.ladder.scales
    )


def _cost_of(info: ModelInfo, text_tokens: int, images: int) -> Callable[[int], float]:
    """Replica milliseconds to the first token as a function of the image tokens."""

    def cost_ms(total_image_tokens: int) -> float:
        return info.costs.request_ms(text_tokens + total_image_tokens, new_tokens=1, images=images)

    return cost_ms
