"""Events of an answer → OpenAI's response bodies, whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

from m3_backend.errors import ServiceError
from m3_backend.messages import Delta, Finished, Started, TokenLogprob
from router.answering import Answer
from router.errors import error_body
from router.explain import explain
from router.planning import Plan
from router.retry import says_something
from router.schemas import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    ChunkDelta,
    ContentLogprob,
    Explanation,
    Logprobs,
    PromptTokensDetails,
    Route,
    RoutedImage,
    RouteError,
    RouteList,
    ScaleOption,
    TopLogprob,
    Usage,
)
from router.trace import Trace


def route(plan: Plan, trace: Trace) -> Route:
    """Body of `/v1/route`: the decision and everything it was weighed against."""
    chosen = [choice.tokens for choice in plan.decision.images]
    images = []
    for case, choice in zip(plan.cases, plan.decision.images, strict=True):
        others = sum(chosen) - choice.tokens
        options = [
            ScaleOption(
                scale=scale,
                image_tokens=tokens,
                p_success=None if case.p_success is None else case.p_success[index],
                cost_ms=plan.cost_ms(others + tokens),
            )
            for index, (scale, tokens) in enumerate(
                zip(plan.info.ladder.scales, case.tokens, strict=True)
            )
        ]
        images.append(
            RoutedImage(
                scale=choice.scale,
                reason=choice.reason.value,
                p_sufficient=choice.p_sufficient,
                options=options,
            )
        )
    return Route(model=plan.chat.model, images=images, m3=explanation(plan, trace))


def routes(plans: Sequence[Plan | ServiceError], trace: Trace) -> RouteList:
    """Body of `/v1/route/batch`; what is wrong with one request is no fault of the others."""
    return RouteList(
        data=[
            route(plan, trace)
            if isinstance(plan, Plan)
            else RouteError(error=error_body(plan)["error"])
            for plan in plans
        ]
    )


def explanation(plan: Plan, trace: Trace) -> Explanation:
    """The decision, with whatever the replica has reported so far."""
    return explain(
        plan.decision,
        request_id=trace.request_id,
        predictor=plan.predictor,
        routing_ms=(trace.routing_s or 0.0) * 1000,
        degraded=trace.degraded,
        started=trace.started,
        finished=trace.finished,
    )


async def completion(answer: Answer, created: int) -> ChatCompletion:
    """The whole answer in one body."""
    text: list[str] = []
    logprobs: list[TokenLogprob] = []
    async for event in answer:
        if isinstance(event, Started):  # perhaps once more: then the answer begins anew
            text.clear()
            logprobs.clear()
        elif isinstance(event, Delta):
            text.append(event.text)
            logprobs.extend(event.logprobs)
        else:
            finished = event
    chat = answer.plan.chat
    return ChatCompletion(
        id=_completion_id(answer.trace),
        created=created,
        model=chat.model,
        choices=[
            Choice(
                message=AssistantMessage(content="".join(text)),
                logprobs=_logprobs(logprobs) if chat.logprobs else None,
                finish_reason=finished.reason,
            )
        ],
        usage=_usage(answer.started, finished),
        m3=explanation(answer.plan, answer.trace),
    )


async def server_sent_events(answer: Answer, created: int) -> AsyncGenerator[bytes, None]:
    """The answer as SSE: role, deltas, finish reason with `m3`, usage if asked for, [DONE].

    The status line is out by now, so an error becomes an event in the usual error shape, and the
    stream ends without [DONE].
    """
    chat, trace = answer.plan.chat, answer.trace

    def chunk(choice: ChunkChoice, m3: Explanation | None = None) -> bytes:
        body = ChatCompletionChunk(
            id=_completion_id(trace), created=created, model=chat.model, choices=[choice], m3=m3
        )
        return _event(body.model_dump_json())

    try:
        yield chunk(ChunkChoice(delta=ChunkDelta(role="assistant", content="")))
        async for event in answer:
            if isinstance(event, Finished):
                end = ChunkChoice(delta=ChunkDelta(), finish_reason=event.reason)
                yield chunk(end, explanation(answer.plan, trace))
                if chat.include_usage():
                    yield _usage_event(answer, created, event)
            elif isinstance(event, Delta) and says_something(event):
                logprobs = _logprobs(event.logprobs) if chat.logprobs else None
                yield chunk(ChunkChoice(delta=ChunkDelta(content=event.text), logprobs=logprobs))
    except Exception as error:
        yield _event(json.dumps(error_body(trace.failed(error))))
        return
    yield _event("[DONE]")


def _usage_event(answer: Answer, created: int, finished: Finished) -> bytes:
    """OpenAI's last chunk under `stream_options.include_usage`: no choices, only the count."""
    chunk = ChatCompletionChunk(
        id=_completion_id(answer.trace),
        created=created,
        model=answer.plan.chat.model,
        choices=[],
        usage=_usage(answer.started, finished),
    )
    return _event(chunk.model_dump_json())


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _completion_id(trace: Trace) -> str:
    return f"chatcmpl-{trace.request_id}"


def _usage(started: Started, finished: Finished) -> Usage:
    cached = (
        tokens
        for tokens, level in zip(started.image_tokens, started.cache, strict=True)
        if level != "miss"
    )
    return Usage(
        prompt_tokens=started.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        total_tokens=started.prompt_tokens + finished.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(cached), image_tokens=sum(started.image_tokens)
        ),
    )


def _logprobs(tokens: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs(
        content=[
            ContentLogprob(
                token=entry.token,
                logprob=entry.logprob,
                bytes=list(entry.token.encode()),
                top_logprobs=[
                    TopLogprob(token=token, logprob=logprob, bytes=list(token.encode()))
                    for token, logprob in entry.top
                ],
            )
            for entry in tokens
        ]
    )
