"""The nouns of the engine: jobs that go in, tokens that come out, and the errors that may come instead.

EngineError
├── PromptInvalid   the conversation is none that the model can be given
    ├── PromptTooLong   the prompt does not fit into the model's context
├── JobFailed       this job's computation failed; others go on
└── EngineStopped   the engine was unloaded while the job waited or ran
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


class EngineError(Exception):
    pass


class PromptInvalid(EngineError):
    pass


class PromptTooLong(EngineError):
    pass


class JobFailed(EngineError):
    pass


class EngineStopped(EngineError):
    pass


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy, and then the other fields mean nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Prompt:
    """Token ids around the run of audio tokens."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def text_tokens(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Job:
    """One chunk of audio to be turned into tokens."""

    prompt: Prompt
    samples: np.ndarray  # float32 (n,), mono, 16 kHz
    max_tokens: int  # tokens to decode at most, the end-of-text included
    sampling: Sampling


@dataclass(frozen=True)
class Token:
    id: int
    logprob: float  # natural logarithm of its probability before temperature and top_p


@dataclass(frozen=True)
class JobDone:
    """The last thing that a job gives. `length`: the cap was reached before the model had ended."""

    reason: Literal["stop", "length"]
    text_tokens: int
    audio_tokens: int
    output_tokens: int  # the end-of-text included
    no_speech_prob: float  # probability of the end-of-text as the first token
