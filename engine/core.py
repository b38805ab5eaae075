"""The nouns of the engine: jobs that go in, tokens that come out, and the errors that may come instead.

EngineError
├── PromptInvalid   the conversation is none that the model can be given
    ├── PromptTooLong   the prompt does not fit into the model's context
├── JobFailed       this job's computation failed; others go on
└── EngineStopped   the engine was unloaded while the job waited or ran
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.biasing import KeywordTree


class EngineError(Exception):
    pass


class PromptInvalid(EngineError):
    def __init__(self, message: str, param: str = "messages") -> None:
        """`param`: the part of the request that is wrong."""
        super().__init__(message)
        self.param = param


class PromptTooLong(EngineError):
    pass


class JobFailed(EngineError):
    @classmethod
    def by(cls, error: Exception) -> JobFailed:
        return cls(f"The model failed on this audio: {type(error).__name__}: {error}")


class EngineStopped(EngineError):
    pass


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest, after penalties, bias and grammar."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # share of the likeliest token's probability that a token must have
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0  # before which the text may not end
    top_logprobs: int = 0  # likeliest tokens that are told beside the chosen one

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        return self == Sampling(top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, seed=self.seed)

    def check_tokens(self, known: int) -> None:
        """Raises PromptInvalid for a bias of a token that a vocabulary of `known` does not have."""
        for token, _ in self.logit_bias:
            if not 0 <= token < known:
                raise PromptInvalid(f"logit_bias names the token {token}; this model has {known}.", "logit_bias")


@dataclass(frozen=True)
class Prompt:
    """Token ids around the runs of audio tokens: one text more than there are recordings."""

    texts: tuple[tuple[int, ...], ...]

    @property
    def recordings(self) -> int:
        return len(self.texts) - 1

    @property
    def text_tokens(self) -> int:
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Job:
    """A prompt with its audio, to be answered in tokens."""

    prompt: Prompt
    audio: tuple[np.ndarray, ...]  # each float32 (n,), mono, 16 kHz; one for each gap in the prompt
    max_tokens: int  # tokens to decode at most, the end-of-text included
    sampling: Sampling
    grammar: str | None = None  # what the answer must obey, as llguidance reads it
    keywords: KeywordTree | None = None  # words to expect
    loops_end: bool = False  # whether a text that repeats itself is given up
    # Asked once the answer is there: are the places of its tokens in the (one) recording to be found?
    timed: Callable[[list[int]], bool] | None = None
    answer: tuple[int, ...] = ()  # is there already: nothing is decoded, only the places of its tokens are found


@dataclass(frozen=True)
class Token:
    id: int
    logprob: float  # natural logarithm of its probability before penalties, temperature and grammar
    top: tuple[tuple[int, float], ...] = ()  # ids and log-probabilities of the likeliest, if they were asked for


@dataclass(frozen=True)
class JobDone:
    """The last thing that a job gives. `length`: the cap was reached before the model had ended; `loop`: the text went
    round in circles."""

    reason: Literal["stop", "length", "loop"]
    text_tokens: int
    audio_tokens: int
    output_tokens: int  # the end-of-text included
    no_speech_prob: float  # probability of the end-of-text as the first token
    spans: Sequence[tuple[int, int]] = ()  # where `Job.timed` asked: each token's samples of the recording
    # Where `Job.loops_end` asked: ids and log-probabilities of the likeliest tokens in the place of the end-of-text.
    rivals: tuple[tuple[int, float], ...] = ()
