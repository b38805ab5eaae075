"""The nouns of an answer, and how tokens become one: text, what ends it, and calls of tools."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.core import Token
from engine.tokenizer import TextDecoder, VoxtralTokenizer
from transcript import Gap, Segment, TextToken, ToolCall, Usage

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class AnswerDelta:
    choice: int
    text: str
    tokens: tuple[TextToken, ...] = ()


@dataclass(frozen=True)
class ToolCallMade:
    choice: int
    index: int
    call: ToolCall


@dataclass(frozen=True)
class Answer:
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    tokens: tuple[TextToken, ...]
    usage: Usage
    segments: tuple[Segment, ...] = ()  # of a transcript
    gaps: tuple[Gap, ...] = ()  # of its recordings, each counted from its own beginning


@dataclass(frozen=True)
class AnswerDone:
    choice: int
    answer: Answer


AnswerEvent = AnswerDelta | ToolCallMade | AnswerDone


class Writer:
    """Tokens of one choice to events. Text that may be the beginning of a stop text is held back until it is known.

    A call of a tool is `[TOOL_CALLS]` name `[ARGS]` JSON, and may follow text or another call.
    """

    def __init__(self, choice: int, tokenizer: VoxtralTokenizer, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self.tokens: list[TextToken] = []
        self._choice, self._tokenizer, self._stop = choice, tokenizer, stop
        self._decoder = TextDecoder()
        self._text = ""
        self._sent = 0  # characters of the text
        self._told = 0  # tokens
        self._call: list[str] | None = None  # name and arguments of the call that is being written
        self._calls: list[ToolCall] = []

    def add(self, token: Token) -> Iterator[AnswerDelta | ToolCallMade]:
        token_bytes = self._tokenizer.token_bytes
        top = tuple((token_bytes(i), logprob) for i, logprob in token.top)
        self.tokens.append(TextToken(token.id, token_bytes(token.id), token.logprob, top))
        if token.id == self._tokenizer.tool_calls:
            yield from self._end_call()
            self._call = [""]
        elif token.id == self._tokenizer.tool_arguments and self._call:
            self._call.append("")
        elif self._call:
            self._call[-1] += self._decoder.add(self.tokens[-1].bytes)
        else:
            self._text += self._decoder.add(self.tokens[-1].bytes)
            yield from self._grow()

    def _grow(self) -> Iterator[AnswerDelta]:
        found = [at for stop in self._stop if (at := self._text.find(stop, self._sent)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
        yield from self._send(len(self._text) - (0 if self.stopped else self._undecided()))

    def _undecided(self) -> int:
        """Characters at the end of the text that could become a stop text."""
        lengths = [n for stop in self._stop for n in range(1, len(stop)) if self._text.endswith(stop[:n])]
        return max(lengths, default=0)

    def _send(self, until: int) -> Iterator[AnswerDelta]:
        if until > self._sent:
            yield AnswerDelta(self._choice, self._text[self._sent : until], tuple(self.tokens[self._told :]))
            self._sent, self._told = until, len(self.tokens)

    def finish(
        self, reason: Literal["stop", "length"], usage: Usage, gaps: tuple[Gap, ...] = ()
    ) -> Iterator[AnswerEvent]:
        if self._call is None and not self.stopped:
            self._text += self._decoder.finish()
        yield from self._send(len(self._text))
        yield from self._end_call()
        finish_reason = "tool_calls" if self._calls and reason == "stop" else reason
        answer = Answer(self._text, tuple(self._calls), finish_reason, tuple(self.tokens), usage, gaps=gaps)
        yield AnswerDone(self._choice, answer)

    def _end_call(self) -> Iterator[ToolCallMade]:
        if self._call is None:
            return
        name, arguments = self._call[0].strip(), "".join(self._call[1:]).strip()
        call = ToolCall(new_call_id(), name, arguments or "{}")
        self._call = None
        yield ToolCallMade(self._choice, len(self._calls), call)
        self._calls.append(call)


def new_call_id() -> str:
    """Nine letters and digits, the form that Mistral's tokenizer asks of the id of a call."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
