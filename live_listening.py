"""What both kinds of sessions share: a clock, ears for turns, numbered utterances, limits, and a queue of events."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from audio_processor import SAMPLE_RATE
from chunking import milliseconds
from config import Settings
from live import (
    Committed,
    LiveError,
    LiveErrorCode,
    LiveEvent,
    LiveRequest,
    LiveSession,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
)
from live_events import EventQueue
from live_flushes import Flushes
from metrics import Metrics
from turns import TurnEnded, TurnEvent, TurnPaused, TurnResumed, TurnStarted, TurnTracker
from voice_activity import FRAME, LIVE_BATCH, Listener

PIECE = SAMPLE_RATE  # heard at once, so that nobody waits long behind a message of minutes
LEAST_COMMIT_MS = 100
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Surroundings:
    """What a session has from its server."""

    settings: Settings
    metrics: Metrics
    threads: Executor  # where sound is looked at for speech
    held: AsyncExitStack  # what is given back when a session is closed


class ListeningSession(LiveSession):
    """Everything but how a model hears. The hooks of a kind are called in the order of the audio."""

    always_listens: ClassVar[bool]  # whether sound is looked at for speech where nobody asks for turns

    def __init__(self, request: LiveRequest, around: Surroundings) -> None:
        self.request = request
        self.fed = 0  # samples
        self.error: Exception | None = None
        self._around, self._settings = around, around.settings
        self._loop = asyncio.get_running_loop()
        self._events = EventQueue()
        self._number, self._begin = 0, 0  # of the utterance at hand, and its first sample
        self._ears: Listener | None = None
        self._turns: TurnTracker | None = None
        self._judged = 0  # samples
        self._over = self._ended = False  # for audio; altogether
        self._feeding = False
        self._latest = np.zeros(0, np.float32)  # samples that nobody judges
        self._flushes = Flushes(self._flush, lambda: self._quiet_since)
        self._ahead = 0.0  # seconds of audio that came faster than they can have been spoken, at the time of `_counted`
        self._opened = self._last_fed = self._counted = self._loop.time()
        self._listen()
        self._alarm = self._loop.call_later(0, self._watch_clock)

    # Hooks.

    @property
    def _earliest(self) -> int:
        """The first sample that an utterance can have which ends now."""
        return 0

    @property
    @abstractmethod
    def behind(self) -> float:
        """Seconds of audio that wait for the model."""

    @abstractmethod
    def _add(self, samples: np.ndarray) -> None:
        """Samples that were fed, before they are judged."""

    def _judge(self, probability: float) -> None:
        """The next frame is speech with this probability. What follows from it for turns comes afterwards."""

    @abstractmethod
    def _heard_all(self) -> None:
        """All samples of a piece were added and judged."""

    def _turn_started(self, start: int) -> None: ...

    def _turn_paused(self) -> None: ...

    @abstractmethod
    def _utterance_ended(self, number: int, start: int, end: int, last: int) -> None:
        """No more audio belongs to it; behind `last` there is silence."""

    @abstractmethod
    async def _utterance_dropped(self, number: int) -> None:
        """Nothing that is told from now on is of it."""

    @abstractmethod
    def _flush(self, end: int | None) -> None:
        """What was fed before sample `end`, or all of it."""

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    async def _updated(self, request: LiveRequest) -> None:
        """Check and take over what the model has to know. Raises LiveError."""

    @abstractmethod
    def _stop(self) -> None:
        """Give back what is held, at once. Called once."""

    # What a dialect calls.

    async def feed(self, samples: np.ndarray) -> None:
        self._check()
        self._feeding, now = True, self._loop.time()
        self._ahead, self._counted = max(self._ahead - (now - self._counted), 0), now
        try:
            self._refuse_when_behind(len(samples) / SAMPLE_RATE)
            self._ahead += len(samples) / SAMPLE_RATE
            for start in range(0, len(samples), PIECE):
                await self._hear(samples[start : start + PIECE])
        finally:
            self._feeding, self._last_fed = False, self._loop.time()

    def _refuse_when_behind(self, seconds: float) -> None:
        """A client that sends more than anybody can have spoken meanwhile is one that can wait."""
        most = self._settings.realtime_backlog_seconds
        can_wait = self.request.may_wait or self._ahead + seconds >= most / 2
        if self.behind > most and not can_wait:
            raise LiveError(
                "backlog_full",
                f"The model is {self.behind:.0f} s behind, and this audio was not taken. Pause, or send less; "
                "REALTIME_BACKLOG_SECONDS says how much may wait.",
            )

    async def _hear(self, samples: np.ndarray) -> None:
        await self._wait_for_model()
        ears = self._ears
        judged = await self._loop.run_in_executor(self._around.threads, _judged, ears, samples) if ears else ()
        self._check()
        self.fed += len(samples)
        self._latest = samples[:0] if ears else np.concatenate([self._latest, samples])[-PIECE:]
        self._around.metrics.live_seconds.inc(len(samples) / SAMPLE_RATE)
        self._add(samples)
        for probability in judged:
            self._judged += FRAME
            self._judge(probability)
            self._flushes.judge(probability, self._judged)
            for event in self._turns.add(probability) if self._turns else ():
                self._take_turn(event)
        self._heard_all()

    async def _wait_for_model(self) -> None:
        await self._wait_while(lambda: self.behind > self._settings.realtime_backlog_seconds)

    async def _wait_while(self, busy: Callable[[], bool]) -> None:
        """This time does not count: a sender that is kept from sending is no slower for it, and not idle."""
        since = self._loop.time()
        while busy():
            self._last_fed = self._loop.time()
            await asyncio.sleep(POLL_SECONDS)
            self._check()
        self._counted += self._loop.time() - since

    def _take_turn(self, event: TurnEvent) -> None:
        match event:
            case TurnStarted(start):
                self._begin = start
                self._tell(SpeechStarted(self._number, milliseconds(start)))
                self._turn_started(start)
            case TurnPaused(last):
                self._tell(SpeechPaused(self._number, milliseconds(last)))
                self._turn_paused()
            case TurnResumed(first):
                self._tell(SpeechResumed(self._number, milliseconds(first)))
            case TurnEnded(end, last, reason):
                self._tell(SpeechStopped(self._number, milliseconds(end), reason))
                self._end(end, last)

    def _end(self, at: int, last: int) -> None:
        self._tell(Committed(self._number, milliseconds(self._begin), milliseconds(at)))
        self._utterance_ended(self._number, self._begin, at, last)
        self._next(at)

    def _next(self, begin: int) -> None:
        self._number, self._begin = self._number + 1, begin

    async def commit(self) -> None:
        self._check()
        length = milliseconds(self.fed - self._begin)
        if length < LEAST_COMMIT_MS:
            raise LiveError(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: buffer too small. Expected at least {LEAST_COMMIT_MS}ms of "
                f"audio, but buffer only has {length:.2f}ms of audio.",
            )
        self._cut()

    def _cut(self) -> None:
        """The utterance at hand ends here."""
        self._begin = max(self._begin, self._earliest)
        if self._turns:
            self._turns.cut(self.fed)
        self._end(self.fed, self.fed)

    @property
    def _at_hand(self) -> bool:
        """Whether there is an utterance that has not ended: with turn detection, in which somebody spoke."""
        return self._turns.open if self._turns else self.fed > self._begin

    async def clear(self) -> None:
        self._check()
        if self._turns:
            self._turns.cut(self.fed)
        self._flushes.forget()
        dropped = self._number
        self._next(self.fed)
        await self._utterance_dropped(dropped)
        self._events.forget(dropped)

    async def flush(self) -> None:
        self._check()
        if self._ears is None:  # from here on sound is looked at for speech
            self._ears, self._judged = Listener(LIVE_BATCH), self.fed - len(self._latest)
            pool = self._around.threads
            for probability in await self._loop.run_in_executor(pool, _judged, self._ears, self._latest):
                self._judged += FRAME
                self._flushes.judge(probability, self._judged)
            self._check()  # the session may have ended meanwhile
        self._flushes.ask()

    async def finish(self) -> None:
        self._check()
        if self._at_hand:
            self._cut()
        self._flushes.carry_out()
        self._over = True
        self._finish()

    async def update(self, request: LiveRequest) -> None:
        """An utterance at hand ends where turn detection changes."""
        self._check()
        await self._updated(request)
        other = request.turn_detection != self.request.turn_detection
        if other and self._at_hand:
            self._cut()
        self.request = request
        if other:
            self._listen()

    def _listen(self) -> None:
        detection = self.request.turn_detection
        if not (detection or self.always_listens):
            self._ears = None
        elif self._ears is None:
            self._ears, self._judged = Listener(LIVE_BATCH), self.fed
        self._turns = TurnTracker(detection, self._judged) if detection else None

    def _check(self) -> None:
        if self.error:
            raise self.error
        if self._over:
            raise LiveError("ended", "The session has ended. Open another one.")

    # Events.

    def events(self) -> AsyncIterator[LiveEvent]:
        return aiter(self._events)

    def _tell(self, event: LiveEvent) -> None:
        if self._ended:
            return
        try:
            self._events.put(event)
        except LiveError as error:
            self._end_session(error)

    def _end_session(self, error: Exception | None = None) -> None:
        """The first end counts."""
        if self._ended:
            return
        self._ended, self._over, self.error = True, True, error
        self._alarm.cancel()
        self._flushes.forget()
        self._stop()
        self._events.end(error)

    async def close(self) -> None:
        self._end_session()
        await self._around.held.aclose()

    @property
    def _quiet_since(self) -> float:
        return self._loop.time() if self._feeding or self._over else self._last_fed

    def _watch_clock(self) -> None:
        """At the time at which a limit may be reached, and as often as it is not."""
        settings, now = self._settings, self._loop.time()
        oldest, idlest = settings.realtime_session_seconds, settings.realtime_idle_seconds
        too_long = self._opened + oldest
        idle = self._quiet_since + idlest
        if now >= too_long:
            self._end_session(_limit("too_long", f"The session is {oldest} s old", "REALTIME_SESSION_SECONDS"))
        elif now >= idle:
            self._end_session(_limit("idle", f"There was no audio for {idlest} s", "REALTIME_IDLE_SECONDS"))
        else:
            self._alarm = self._loop.call_at(min(too_long, idle), self._watch_clock)


def _limit(code: LiveErrorCode, what: str, setting: str) -> LiveError:
    return LiveError(code, f"{what}, the most that {setting} allows. Open another one.")


def _judged(ears: Listener, samples: np.ndarray) -> list[float]:
    return [probability for batch in ears.hear(samples) for probability in batch.tolist()]
