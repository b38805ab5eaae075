"""Live transcription: samples go in while somebody speaks, and events come out. Knows no HTTP and no model.

A session has a clock, which counts the samples that it was fed: all times are milliseconds since the first one. What is
said is divided into utterances, which are numbered 0, 1, 2 and so on. One ends where turn detection finds the end of a
turn, or by `commit`; without turn detection by `commit`, `clear` and `finish` only.

Of an utterance there come, in this order where they come at all:

    SpeechStarted                 turn detection: somebody speaks
    SpeechPaused, SpeechResumed   turn detection: the turn may be over; it is not
    SpeechStopped                 turn detection: the turn is over
    Committed                     no more audio belongs to it
    UtteranceDone                 the whole text; or UtteranceFailed, which ends it in any case: the session goes on

`live_sessions.LiveSessions.open(model, request, key)` waits until the model is loaded and gives a session, which must
be closed in any case; the model stays loaded meanwhile. It raises ModelUnavailable, PromptTooLong and LiveError.

LiveText may come at any time before UtteranceDone: the 4B writes while somebody speaks, and the 3B at each pause of a
second, so that who never commits need not wait for text. The texts of LiveText together are the text of UtteranceDone.
Utterances are done in their order, but the next one may start before the one before it is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transcript import TextToken, Transcript
from turns import TurnDetection
from word_times import Timing

LiveErrorCode = Literal[
    "too_many_sessions",  # by LiveSessions
    "prompt_unsupported",  # by open and update: the 4B reads no prompt
    "delay_fixed",  # by update: delay, interval and top_logprobs cannot change once there was audio
    "input_audio_buffer_commit_empty",  # by commit: less than 100 ms; the session goes on. OpenAI's name
    "backlog_full",  # by feed: the model is REALTIME_BACKLOG_SECONDS behind; these samples were not taken
    "idle",  # ends the session: no audio for REALTIME_IDLE_SECONDS
    "too_long",  # likewise: it is REALTIME_SESSION_SECONDS old
    "reader_too_slow",  # likewise: nobody reads its events
    "ended",  # by all methods after finish and close
]


class LiveError(Exception):
    """What a session cannot do. `code` is stable and for programs, the message is for people."""

    def __init__(self, code: LiveErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class LiveRequest:
    """What was asked, validated."""

    language: str | None = None  # ISO 639-1; None: the model recognises it, as the 4B does always
    prompt: str | None = None  # names, spellings and style to expect; the 3B only
    keywords: tuple[str, ...] = ()  # words to expect, spelled as they are to be written
    delay_ms: int | None = None  # the 4B's: between speech and its text, 80 to 1200 in steps of 80, or 2400
    interval_ms: int | None = None  # the 4B's: audio that is heard at once; None: by load
    top_logprobs: int = 0  # likeliest tokens that are told beside each
    timing: Timing = "chunks"  # the smallest that shall have times in UtteranceDone; costs the 3B a pass
    turn_detection: TurnDetection | None = None
    may_wait: bool = False  # what is paced as speech can wait for a model that is behind: it comes through a pipe


@dataclass(frozen=True)
class SpeechStarted:
    """`ms`: where its audio begins, padding included, as OpenAI defines it."""

    utterance: int
    ms: int


@dataclass(frozen=True)
class SpeechPaused:
    """Half of the silence that ends a turn. `ms`: where speech ended."""

    utterance: int
    ms: int


@dataclass(frozen=True)
class SpeechResumed:
    """`ms`: where speech goes on."""

    utterance: int
    ms: int


@dataclass(frozen=True)
class SpeechStopped:
    """`ms`: where its audio ends, the silence included that ended it, as OpenAI defines it. `reason`: Mistral's; how
    low the probability of speech fell, or end_timeout_ms."""

    utterance: int
    ms: int
    reason: Literal["threshold", "timeout"]


@dataclass(frozen=True)
class Committed:
    utterance: int
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class LiveText:
    """More of the text. `tokens`: those that it was written with, with `top_logprobs` of others if asked for."""

    utterance: int
    text: str
    tokens: tuple[TextToken, ...]


@dataclass(frozen=True)
class UtteranceDone:
    """The whole text of an utterance, empty where nobody spoke. Times are the session's, usage is this utterance's."""

    utterance: int
    transcript: Transcript


@dataclass(frozen=True)
class UtteranceFailed:
    """`error`: an EngineError, for api/errors.py:describe."""

    utterance: int
    error: Exception


@dataclass(frozen=True)
class LiveFlushed:
    """The text of all that was fed before a `flush` has come, but for words that may begin a replacement."""

    utterance: int


LiveEvent = (
    SpeechStarted
    | SpeechPaused
    | SpeechResumed
    | SpeechStopped
    | Committed
    | LiveText
    | UtteranceDone
    | UtteranceFailed
    | LiveFlushed
)


class LiveSession(ABC):
    """One session at work. One task calls its methods, one after another, and another one iterates `events()`, once.

    What ends a session early, a LiveError, EngineStopped or JobFailed, is raised by `events`, after the events before
    it, and by every method that is called afterwards, but `close`.
    """

    @abstractmethod
    async def feed(self, samples: np.ndarray) -> None:
        """Hear more audio: float32 (n,), mono, 16 kHz, any n.

        Returns when the samples are taken. A client that sends faster than anybody speaks, a file, waits here for the
        model, and so does its socket. Where the model is slower than speech it raises LiveError backlog_full, unless
        the request says that it may wait, and `samples` are as if they had never been; the session goes on.
        """

    @abstractmethod
    async def commit(self) -> None:
        """End the utterance here, whatever turn detection says. Raises LiveError input_audio_buffer_commit_empty.

        Where there is no turn, the 4B hears what came since the last one, but no more of it than half of
        REALTIME_BACKLOG_SECONDS; of recordings what is no speech is always left out, and so it is here.
        """

    @abstractmethod
    async def clear(self) -> None:
        """Forget the audio of the utterance at hand. What has come of its text is void: no event of it follows, a
        LiveFlushed neither, and what is fed from now on belongs to an utterance with another number.

        The 4B first writes what was committed before, for which this waits.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Write what was fed so far, and do not wait for more of it; LiveFlushed follows. The utterance goes on.
        Words that may begin a replacement wait for what follows them even so.

        Where somebody speaks, the next pause is waited for, or that no more audio comes: within a word it would be
        written wrong. In a pause in which there was a flush nothing is left to write, and the next one is waited for.
        """

    @abstractmethod
    async def finish(self) -> None:
        """There is no more audio. The utterance at hand is committed, and `events` ends when all are done."""

    @abstractmethod
    async def update(self, request: LiveRequest) -> None:
        """What is asked from now on: of the 4B at once, of the 3B for the next utterance.

        Raises LiveError prompt_unsupported or delay_fixed, and nothing has changed.
        """

    @abstractmethod
    def events(self) -> AsyncIterator[LiveEvent]:
        """All events, until `finish` or `close`. Raises what ended the session early, after the events before it."""

    @abstractmethod
    async def close(self) -> None:
        """Give back at once all that the session holds. Safe to call twice, by any task."""
