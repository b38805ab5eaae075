"""A chat completion as OpenAI's, Mistral's and Lotti's clients read it, whole or as chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from answer import Answer, AnswerDelta, AnswerDone, AnswerEvent, ToolCallMade
from api.transcription_wire import warnings_if_any
from streaming import sse
from transcript import TextToken, ToolCall, Usage


def chat_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "audio_tokens": usage.audio_tokens, "text_tokens": usage.text_tokens, "cached_tokens": 0,
        },
    }  # fmt: skip


def usage_of(answers: Iterable[Answer]) -> Usage:
    """One prompt, and what all choices wrote."""
    answers = list(answers)
    first = answers[0].usage
    written = sum(answer.usage.output_tokens for answer in answers)
    return Usage(first.text_tokens, first.audio_tokens, written, first.audio_ms)


def _scores(tokens: tuple[TextToken, ...]) -> dict[str, Any]:
    def entry(token_bytes: bytes, logprob: float) -> dict[str, Any]:
        return {"token": token_bytes.decode(errors="replace"), "logprob": logprob, "bytes": list(token_bytes)}

    content = [
        entry(token.bytes, token.logprob) | {"top_logprobs": [entry(*other) for other in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class ChatCompletion:
    """The fixed part of one chat answer: its id, its time and the model's name."""

    def __init__(self, model: str, with_logprobs: bool = False) -> None:
        self.id, self.created, self.model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model
        self._with_logprobs = with_logprobs

    def body(self, answers: list[Answer]) -> dict[str, Any]:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        told = warnings_if_any(answers[0])  # what was wrong with the recordings, which all answers are about
        return self._envelope("chat.completion", choices, usage=chat_usage(usage_of(answers)), **told)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        content = answer.text or (None if answer.tool_calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if answer.tool_calls:
            message["tool_calls"] = [_tool_call(call) for call in answer.tool_calls]
        scores = _scores(answer.tokens) if self._with_logprobs else None
        return {"index": index, "message": message, "logprobs": scores, "finish_reason": answer.finish_reason}

    async def frames(self, events: AsyncGenerator[AnswerEvent], include_usage: bool) -> AsyncGenerator[bytes]:
        """Chunks with the role, the text as it is decoded, the finish reason with any warnings, the usage if asked for,
        and `[DONE]`."""
        answers: list[Answer] = []
        begun: set[int] = set()
        async with aclosing(events):
            yield self._chunk(0, {"role": "assistant", "content": ""})
            begun.add(0)
            async for event in events:
                if event.choice not in begun:
                    begun.add(event.choice)
                    yield self._chunk(event.choice, {"role": "assistant", "content": ""})
                for frame in self._frames_of(event):
                    yield frame
                if isinstance(event, AnswerDone):
                    answers.append(event.answer)
        if include_usage:
            yield sse(self._envelope("chat.completion.chunk", [], usage=chat_usage(usage_of(answers))))
        yield sse("[DONE]")

    def _frames_of(self, event: AnswerEvent) -> list[bytes]:
        if isinstance(event, AnswerDelta):
            return [self._chunk(event.choice, {"content": event.text}, tokens=event.tokens)]
        if isinstance(event, ToolCallMade):
            return self._tool_frames(event)
        return [self._chunk(event.choice, {}, event.answer.finish_reason, **warnings_if_any(event.answer))]

    def _tool_frames(self, event: ToolCallMade) -> list[bytes]:
        """The name and then the arguments, as clients that put deltas together expect them."""
        begin = _tool_call(event.call) | {"index": event.index}
        begin["function"] = {"name": event.call.name, "arguments": ""}
        rest = {"index": event.index, "function": {"arguments": event.call.arguments}}
        return [self._chunk(event.choice, {"tool_calls": [delta]}) for delta in (begin, rest)]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        tokens: tuple[TextToken, ...] = (),
        **rest: Any,
    ) -> bytes:
        scores = _scores(tokens) if self._with_logprobs and tokens else None
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish_reason}
        return sse(self._envelope("chat.completion.chunk", [choice], **rest))

    def _envelope(self, kind: str, choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **rest}
