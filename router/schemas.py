"""The HTTP API's bodies: OpenAI Chat Completions as used with images, plus the `m3` object.

Parsing is strict: what the service would not honour is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import from_json

from m3_backend.errors import InvalidRequestError
from m3_backend.messages import CacheLevel, FinishReason, Priority, Sampling
from router.errors import Code, from_validation

Detail = Literal["auto", "low", "high"]
MOST_TOKENS = 2**31 - 1  # more than any context; what an engine counts with stays in its range

# Reading JSON and checking types hold the interpreter, and with it the event loop, for as long as
# they take: thirteen seconds for 18 MB of messages that are all wrong. What they take goes by the
# number of values, and every value but the first of its kind needs a comma.
MOST_COMMAS = 50_000
MOST_ENTRIES = 64  # of one object; OpenAI's own request has forty
MOST_MESSAGES = 1024
MOST_PARTS = 1024  # of one message

LONGEST_ANSWER = 4_096  # characters of a right answer in feedback
MOST_ANSWERS = 16

# Options of OpenAI's API that change no answer, and mean nothing here: notes to the provider, and
# hints to caches that are not ours. Accepted whatever they say, and neither used nor stored.
IGNORED = frozenset(
    (
        *("metadata", "safety_identifier", "parallel_tool_calls"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    )
)
IGNORED_OF_PART = frozenset({"prompt_cache_breakpoint"})

# Options of OpenAI's API that this service does not have, with the values that ask for nothing.
# Clients send these by default; any other value is refused.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
NEUTRAL_VALUES_OF_STREAM: dict[str, tuple[Any, ...]] = {"include_obfuscation": (None, False)}

# The same inside a message. OpenAI's clients send an answer back whole when a conversation goes on.
NEUTRAL_VALUES_OF_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "parsed": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(Request):
    type: Literal["text"]
    text: str


class ImageUrl(Request):
    url: str = Field(description="A data URL: `data:image/png;base64,…`.")
    detail: Detail = Field(
        default="auto", description="`low` bounds the scale from above, `high` from below."
    )


class ImagePart(Request):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _content_kind(value: object) -> str:
    return "string" if isinstance(value, str) else "parts"


class Message(Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("string")]
        | Annotated[list[Part], Field(fail_fast=True, max_length=MOST_PARTS), Tag("parts")],
        Discriminator(_content_kind),
    ]

    def parts(self) -> list[TextPart | ImagePart]:
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return list(self.content)


class StreamOptions(Request):
    include_usage: bool = False


class M3Options(Request):
    """The caller's own limits on the choice of scale."""

    scale: int | None = Field(default=None, description="Use this scale; nothing is chosen.")
    max_regret: float | None = Field(default=None, ge=0.0, le=1.0)
    min_scale: int | None = Field(default=None, description="Never coarser than this.")
    max_scale: int | None = Field(default=None, description="Never finer than this.")
    latency_budget_ms: float | None = Field(
        default=None, gt=0.0, description="Estimated time to the first token, on an idle replica."
    )
    cache_salt: str = Field(default="", max_length=256, description="Separates caches by tenant.")
    priority: Priority = Field(
        default="interactive", description="`batch` waits behind others and is refused earlier."
    )
    timeout_ms: float | None = Field(
        default=None, gt=0.0, description="Time for the whole answer, within the service's own."
    )


class ChatRequest(Request):
    """Body of `POST /v1/chat/completions` and `POST /v1/route`."""

    model: str = Field(description="`m3-auto` or `m3-<scale>`.")
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(
        default=None, ge=0.0, le=2.0, description="0 (greedy) if left out."
    )
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    stop: (
        Annotated[
            Annotated[str, Field(min_length=1), Tag("string")]
            | Annotated[
                list[Annotated[str, Field(min_length=1)]], Field(max_length=4), Tag("parts")
            ],
            Discriminator(_content_kind),
        ]
        | None
    ) = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    user: str | None = Field(
        default=None, description="Accepted for compatibility; not used or stored."
    )
    m3: M3Options = M3Options()

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, default_max_tokens: int) -> Sampling:
        """Decoding options for the engine. Left-out options are greedy, unlike OpenAI's."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens or default_max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class RouteBatch(Request):
    """Body of `POST /v1/route/batch`: chat requests, each as `POST /v1/route` takes it."""

    requests: list[Any] = Field(min_length=1)


class FeedbackRequest(Request):
    """Body of `POST /v1/feedback`: a verdict, a right answer, or both."""

    request_id: str = Field(
        min_length=1, max_length=64, description="As in `x-m3-request-id` of the answer."
    )
    verdict: Literal["right", "wrong"] | None = None
    score: float | None = Field(
        default=None, ge=0.0, le=1.0, description="In place of `verdict`: 0 (wrong) to 1 (right)."
    )
    answer: (
        Annotated[
            Annotated[str, Field(max_length=LONGEST_ANSWER), Tag("string")]
            | Annotated[
                list[Annotated[str, Field(max_length=LONGEST_ANSWER)]],
                Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True),
                Tag("parts"),
            ],
            Discriminator(_content_kind),
        ]
        | None
    ) = Field(default=None, description="What would have been right, or several of them.")

    @property
    def answers(self) -> tuple[str, ...]:
        """Those that are right, as far as it says."""
        return (self.answer,) if isinstance(self.answer, str) else tuple(self.answer or ())


def parse_feedback(body: bytes) -> FeedbackRequest:
    """The feedback in `body`.

    Raises:
        InvalidRequestError: `invalid_json`, `unsupported_parameter` or `invalid_request`.
    """
    document = _parse_json(body)
    _check_width(document)
    try:
        feedback = FeedbackRequest.model_validate(document)
    except ValidationError as error:
        raise from_validation(error, document) from None
    if feedback.verdict is not None and feedback.score is not None:
        raise InvalidRequestError("'verdict' and 'score' say the same; send one.", param="score")
    if feedback.verdict is None and feedback.score is None and feedback.answer is None:
        raise InvalidRequestError("Send a 'verdict', a 'score' or an 'answer'.", param="verdict")
    return feedback


def parse_chat_request(body: bytes) -> ChatRequest:
    """The request in `body`.

    Raises:
        InvalidRequestError: `invalid_json`, `unsupported_parameter` or `invalid_request`.
    """
    return chat_request(_parse_json(body))


def chat_request(document: Any) -> ChatRequest:
    """The request that a JSON document is.

    Raises:
        InvalidRequestError: `unsupported_parameter` or `invalid_request`.
    """
    document = _tidy(document)
    _check_width(document)
    try:
        request = ChatRequest.model_validate(document)
    except ValidationError as error:
        raise from_validation(error, document) from None
    _check_combinations(request)
    return request


def parse_batch(body: bytes, most: int) -> list[Any]:
    """The documents of a batch, each still to be read by `chat_request`.

    Raises:
        InvalidRequestError: `invalid_json`, `unsupported_parameter` or `invalid_request`.
    """
    document = _parse_json(body)
    _check_width(document)
    try:
        requests = RouteBatch.model_validate(document).requests
    except ValidationError as error:
        raise from_validation(error, document) from None
    if len(requests) > most:
        raise InvalidRequestError(
            f"The batch has {len(requests)} requests; at most {most} are allowed.", param="requests"
        )
    return requests


def _parse_json(body: bytes) -> Any:
    if body.count(b",") > MOST_COMMAS:
        raise InvalidRequestError(
            f"The request body has more than {MOST_COMMAS:,} values, or commas in its texts; "
            "shorten it."
        )
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequestError(
            "The request body is not valid JSON.", code=Code.INVALID_JSON
        ) from None


def _check_width(document: Any) -> None:
    """Refuses objects with so many entries that naming the wrong ones would take long. (What has an
    unknown name is never looked into.)
    """
    if not isinstance(document, dict):
        return
    objects, known = [document], [v for k, v in document.items() if k in ChatRequest.model_fields]
    while known:
        value = known.pop()
        if isinstance(value, list):
            known += value
        elif isinstance(value, dict):
            objects.append(value)
            known += value.values()
    if any(len(found) > MOST_ENTRIES for found in objects):
        raise InvalidRequestError(
            f"An object in the request body has more than {MOST_ENTRIES} entries."
        )


def _tidy(document: Any) -> Any:
    """A copy of the body without what asks for nothing, at all its levels."""
    document = _without(document, NEUTRAL_VALUES, IGNORED)
    if not isinstance(document, dict):
        return document
    if "stream_options" in document:
        options = document["stream_options"]
        document["stream_options"] = _without(options, NEUTRAL_VALUES_OF_STREAM)
    if isinstance(messages := document.get("messages"), list):
        document["messages"] = [_tidy_message(message) for message in messages]
    return document


def _tidy_message(message: Any) -> Any:
    message = _without(message, NEUTRAL_VALUES_OF_MESSAGE)
    if isinstance(message, dict) and isinstance(content := message.get("content"), list):
        message["content"] = [_without(part, {}, IGNORED_OF_PART) for part in content]
    return message


def _without(
    document: Any,
    neutral: Mapping[str, tuple[Any, ...]],
    ignored: frozenset[str] = frozenset(),
) -> Any:
    """A copy of an object without the options that ask for nothing; anything else as it is."""
    if not isinstance(document, dict):
        return document
    return {
        key: value
        for key, value in document.items()
        if key not in ignored and not _is_one_of(value, neutral.get(key, ()))
    }


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether it equals one of them and is of its kind: True is not 1, and False is not 0."""
    return any(
        value == nothing and isinstance(value, bool) is isinstance(nothing, bool)
        for nothing in neutral
    )


def _check_combinations(request: ChatRequest) -> None:
    lengths = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(lengths) > 1:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' differ; send one.",
            param="max_completion_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("'stream_options' needs 'stream': true.", param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")


class PromptTokensDetails(BaseModel):
    """`cached_tokens` counts image tokens whose features came from a cache."""

    cached_tokens: int
    image_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[ContentLogprob]


class Timings(BaseModel):
    """Milliseconds on the replica, stage by stage."""

    queue: float
    fetch: float
    encode: float
    prefill: float
    decode: float


class Explanation(BaseModel):
    """The decision as the `m3` object and the `x-m3-*` headers tell it; lists go by image.

    Args:
        p_sufficient: 1 − predicted shortfall of the chosen scale; None without a predictor.
        max_regret: the bound in force; None where the caller's own limits void it.
        loosened_from: the service's own bound, where load has put a looser one in its place.
        tightened_to: the stricter bound whose price was used, where live labels say that the
            promise's own price breaks it; 0 is the finest scale.
        predictor: version of the predictor; None where there is none.
        cost_ms: estimated replica time to the first token, features not cached.
        routing_ms: measured time from the request's last byte to its hand-over to a replica.
        cache: where the features came from; None before a replica has started.
        degraded: parts that were down and done without.
        notes: what else the caller should know, as stable words.
    """

    request_id: str
    scale: list[int]
    reason: list[str]
    p_sufficient: list[float | None]
    max_regret: float | None
    loosened_from: float | None = None
    tightened_to: float | None = None
    predictor: str | None
    cost_ms: float
    routing_ms: float
    cache: list[CacheLevel] | None = None
    degraded: list[str] = []
    notes: list[str] = []
    timings_ms: Timings | None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    m3: Explanation


def _absent(value: object) -> bool:
    return value is None


class ChunkDelta(BaseModel):
    role: Literal["assistant"] | None = Field(default=None, exclude_if=_absent)
    content: str | None = Field(default=None, exclude_if=_absent)


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One SSE event. The finish reason comes with `m3`, the usage without choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(default=None, exclude_if=_absent)
    m3: Explanation | None = Field(default=None, exclude_if=_absent)


class ScaleOption(BaseModel):
    """One scale weighed for an image; `cost_ms` is the request's with other images as chosen."""

    scale: int
    image_tokens: int
    p_success: float | None
    cost_ms: float


class RoutedImage(BaseModel):
    scale: int
    reason: str
    p_sufficient: float | None
    options: list[ScaleOption]


class Route(BaseModel):
    """Answer of `POST /v1/route`: the decision, without running the model."""

    object: Literal["m3.route"] = "m3.route"
    model: str
    images: list[RoutedImage]
    m3: Explanation


class ErrorDetail(BaseModel):
    """`param` names the field at fault, `code` is one of docs/api.md."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """What OpenAI's clients parse into their exceptions."""

    error: ErrorDetail


class RouteError(ErrorBody):
    """What is wrong with one request of a batch, in the usual shape."""


class RouteList(BaseModel):
    """Answer of `POST /v1/route/batch`, in the order of the requests."""

    object: Literal["list"] = "list"
    data: list[Route | RouteError]


class FeedbackTaken(BaseModel):
    """Answer of `POST /v1/feedback`.

    Args:
        status: `recorded`; `repeated` if the very same had been said before.
        score: what counts for the answer that was served.
        labelled: whether it is now known which scales would have been right.
    """

    object: Literal["m3.feedback"] = "m3.feedback"
    request_id: str
    status: Literal["recorded", "repeated"]
    score: float
    labelled: bool


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
