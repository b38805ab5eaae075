"""What the live worker knows of one stream: the audio that waits, the tokens to read next, and where the text goes.

A listener's life is a sequence of steps of 80 ms. At each the model reads the token that it wrote last, or one of the
prompt, and writes the next one. Audio is heard some steps ahead, so that several can be read at once (engine.guesses).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from itertools import islice
from typing import Literal

import numpy as np
import torch

from engine.backends.voxtral_realtime import MOST_HEARD, MOST_READ, ModelStream
from engine.biasing import KeywordTree
from engine.core import JobDone, JobFailed, Sampling, Token
from engine.guesses import Guesses
from engine.job_stream import JobStream, Outbox
from engine.live import STEP_MS, Flushed, LiveStream, LiveToken
from engine.loops import LoopDetector
from engine.realtime_tokenizer import RealtimeTokenizer
from engine.sampling import Sampler
from engine.word_clock import WordClock

log = logging.getLogger("voxtral.engine")

MOST_GUESSED = 8  # steps that are read at once beyond those that are certain
FILE_DELAY_MS = 2400  # nobody waits for the words of a recording, and with this delay the model is most accurate


class SampleQueue:
    """Samples that came in pieces and leave in others."""

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, samples: np.ndarray) -> None:
        self._pieces.append(samples)
        self._count += len(samples)

    def first(self, count: int) -> np.ndarray:
        """The first `count`, which stay."""
        found, missing = [], count
        for piece in self._pieces:
            found.append(piece[:missing])
            missing -= len(found[-1])
            if not missing:
                break
        return np.concatenate(found)

    def drop(self, count: int) -> None:
        self._count -= count
        while count:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
            count -= min(count, len(piece))


class Listener:
    """Of any stream. Subclasses say what is sent, and when it ends before its audio does."""

    endless = True  # whether the text may not end before its audio does

    def __init__(
        self, tokenizer: RealtimeTokenizer, model: ModelStream, delay_ms: int, sampler: Sampler | AnswerSampler
    ) -> None:
        self.model, self.sampler = model, sampler
        self.ended = False
        self.fed = 0  # samples
        self._tokenizer, self._delay_ms, self._step = tokenizer, delay_ms, tokenizer.step
        prompt = tokenizer.prompt(delay_ms)
        self._prompt = len(prompt)
        self._known = prompt[model.read :]  # tokens to read next
        self._before = (tokenizer.pad, tokenizer.pad)  # what was written last
        self._clock = WordClock(tokenizer.step, tokenizer.left_pads + tokenizer.delay(delay_ms))
        self._least = 1  # steps of audio that must be there before any is heard,
        self._released = 0  # and then all that are
        self._samples = SampleQueue()
        self._samples.put(np.zeros(tokenizer.left_pads * tokenizer.step - model.taken, np.float32))
        self._length = 0  # samples of the stream, without the silence before it
        self._flushed = 0  # of them, those to which it was flushed
        self._flushes: deque[tuple[int, int]] = deque()  # (steps to be read until then, samples that were fed)
        self._last: int | None = None  # step

    # What comes in.

    def feed(self, samples: np.ndarray) -> None:
        self._samples.put(samples)
        self._length += len(samples)
        self.fed += len(samples)
        if self._waiting >= self._least:
            self._released = self._waiting

    def flush(self) -> None:
        self._flushes.append((self._complete(), self.fed))
        self._tell(self.model.read)

    def finish(self) -> None:
        self._last = self._complete()
        self._tell(self.model.read)

    def _complete(self) -> int:
        """Put so much silence behind what was fed that all of it can be written; steps that must be read for that."""
        if self._length > self._flushed:
            silence = self._tokenizer.silence_after(self._length, self._delay_ms)
            self._clock.insert(self._length, silence)
            self._samples.put(np.zeros(silence, np.float32))
            self._flushed = self._length = self._length + silence
        return self._tokenizer.left_pads + self._flushed // self._step - 1  # the last writes of audio that follows

    # What is to be done.

    @property
    def due(self) -> bool:
        """Whether there is anything to hear or to read."""
        return not self.ended and (len(self.model.audio) > 0 or self.audible > 0)

    @property
    def audible(self) -> int:
        """Steps of audio that may be heard now."""
        return self._waiting if self._flushes or self._last is not None else self._released

    @property
    def _waiting(self) -> int:
        return len(self._samples) // self._step

    def audio(self, most: int) -> np.ndarray:
        """The samples of at most so many steps; `drop` them when they were heard."""
        return self._samples.first(min(self.audible, most, MOST_HEARD) * self._step)

    def drop(self, count: int) -> None:
        self._samples.drop(count)
        self._released = max(0, self._released - count // self._step)

    def plan(self, most: int, guesses: Guesses) -> list[int]:
        """Tokens to read: those that are known, then guesses, `most` in all. None where no audio is there."""
        steps = min(len(self.model.audio), MOST_READ, max(len(self._known), min(most, 1 + MOST_GUESSED)))
        known = self._known[:steps]
        return known + guesses.next(self._before, steps - len(known))

    def certain(self, read: int) -> int:
        """How many of so many tokens that are read are no guesses."""
        return min(read, len(self._known))

    def answers(self, read: int) -> int:
        """After how many of so many tokens that are read something is written; not so within the prompt."""
        return max(0, min(read, self.model.read + read - self._prompt + 1))

    # What was done.

    def wrote(self, step: int, token: Token, guesses: Guesses) -> None:
        """Having read step number `step`, the model wrote `token`."""
        guesses.learn(self._before, token.id)
        self._before = self._before[1], token.id
        self._clock.reach(step + 1)
        if token.id == self._tokenizer.word:
            self._clock.mark(step + 1)
        elif token.id != self._tokenizer.pad:
            self._wrote_text(step + 1, token)
        self._tell(step + 1)

    def kept(self, count: int, last: int | None) -> None:
        """So many of the tokens that were read stay, and `last` was written behind them, if anything was."""
        self._known = self._known[count:] if last is None else [last]

    def _wrote_text(self, written: int, token: Token) -> None:
        begins_word = self._tokenizer.token_bytes(token.id).startswith(b" ")
        self._send(token, self._clock.span(written, begins_word))

    def _tell(self, read: int) -> None:
        """Say what is reached when so many steps were read."""
        while self._flushes and self._flushes[0][0] <= read:
            self._send_flushed(self._flushes.popleft()[1])
        if self._last is not None and self._last <= read and not self.ended:
            self._end("stop")

    def _send(self, token: Token, span: tuple[int, int]) -> None:
        raise NotImplementedError

    def _send_flushed(self, at: int) -> None:
        raise NotImplementedError

    def _end(self, reason: Literal["stop", "length", "loop"]) -> None:
        raise NotImplementedError


class LiveListener(Listener):
    """Of a session."""

    def __init__(self, tokenizer: RealtimeTokenizer, model: ModelStream, stream: LiveStream, outbox: Outbox) -> None:
        options = stream.options
        sampling = Sampling(top_logprobs=options.top_logprobs)
        sampler = Sampler(sampling, tokenizer.end_of_text, keywords=options.keywords, silent=tokenizer.silent)
        super().__init__(tokenizer, model, options.delay_ms, sampler)
        self.stream, self._outbox = stream, outbox
        self._least = -(-(options.interval_ms or STEP_MS) // STEP_MS)
        self._text: int | None = None  # its last token

    def expect(self, keywords: KeywordTree | None) -> None:
        self.sampler.expect(keywords, self._text)

    def kept(self, count: int, last: int | None) -> None:
        super().kept(count, last)
        read = (self.model.read - self._tokenizer.left_pads) * self._step
        self.stream.heard = max(self.stream.heard, self._clock.fed(read))

    def _send(self, token: Token, span: tuple[int, int]) -> None:
        self._text = token.id
        self._outbox.put(self.stream, LiveToken(token.id, token.logprob, token.top, *span))

    def _send_flushed(self, at: int) -> None:
        self._outbox.put(self.stream, Flushed(at))

    def _end(self, reason: Literal["stop", "length", "loop"]) -> None:
        self.ended = True
        self._outbox.put(self.stream, None)


class JobListener(Listener):
    """Of a recording, which is there as a whole."""

    endless = False

    def __init__(self, tokenizer: RealtimeTokenizer, model: ModelStream, stream: JobStream, outbox: Outbox) -> None:
        job = stream.job
        sampler = (
            AnswerSampler(job.answer, tokenizer)
            if job.answer
            else Sampler(job.sampling, tokenizer.end_of_text, keywords=job.keywords, silent=tokenizer.silent)
        )
        super().__init__(tokenizer, model, FILE_DELAY_MS, sampler)
        self.stream, self._outbox = stream, outbox
        self._loops, self._written, self._spans = LoopDetector(), [], []
        self._silence, self._spoken = 0.0, False  # log-probability that nothing was said until the first word
        (samples,) = job.audio
        self.feed(samples)
        self.finish()

    def wrote(self, step: int, token: Token, guesses: Guesses) -> None:
        if not self._spoken:
            self._spoken = token.id != self._tokenizer.pad
            other = math.log(max(-math.expm1(token.logprob), 1e-30))
            self._silence += other if self._spoken else token.logprob
        if token.id == self._tokenizer.end_of_text:
            self._end("stop")
        else:
            super().wrote(step, token, guesses)

    def _send(self, token: Token, span: tuple[int, int]) -> None:
        job = self.stream.job
        self._spans.append(span)
        self._written.append(token.id)
        if job.answer:
            return
        self._outbox.put(self.stream, token)
        if job.loops_end:
            self._loops.add(token.id, self._tokenizer.token_bytes(token.id))
        if self._loops.looping:
            self._end("loop")
        elif len(self._written) >= job.max_tokens:
            self._end("length")

    def _end(self, reason: Literal["stop", "length", "loop"]) -> None:
        self.ended = True
        try:
            places = self._places(reason)
        except Exception as error:  # whoever gave the job is asked, and what is wrong there stays there
            log.exception("it could not be told whether a text needs times")
            self._outbox.put(self.stream, JobFailed.by(error))
            return
        self._outbox.put(
            self.stream,
            JobDone(
                reason, self.stream.job.prompt.text_tokens, self.stream.audio_tokens, len(self._written),
                math.exp(self._silence), places,
            ),
        )  # fmt: skip

    def _places(self, reason: str) -> list[tuple[int, int]]:
        job, text = self.stream.job, self._written
        if job.answer:
            # What was not placed before the audio was over is told with the last of it.
            left = len(job.answer) - len(self._spans)
            return self._spans + [(self._spans[-1] if self._spans else (0, self.fed))] * left
        return self._spans if text and reason != "loop" and job.timed and job.timed(text) else []


class AnswerSampler:
    """Stands for a Sampler where the text is there already: the model only says when each of its tokens comes."""

    plain, spells, sampling = False, False, Sampling()

    def __init__(self, answer: tuple[int, ...], tokenizer: RealtimeTokenizer) -> None:
        self._left, self._silent = deque(answer), [tokenizer.pad, tokenizer.word]

    def choose(self, logits: torch.Tensor, total: torch.Tensor) -> int:
        """As Sampler.choose."""
        ids = [*self._silent, *islice(self._left, 1)]
        token = ids[int(logits[ids].argmax())]
        if token not in self._silent:
            self._left.popleft()
        return token
