"""What the worker asks of a model: prefill jobs into rows, decode one step for the first n rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine.core import Job
from engine.scheduler import Limits, Size

if TYPE_CHECKING:
    import torch

    from engine.tokenizer import VoxtralTokenizer


@dataclass(frozen=True)
class LoadOptions:
    device: str  # auto, cuda, mps or cpu
    dtype: str  # auto, bfloat16 or float32
    rows: int = 0  # jobs that may run together; 0: as many as are of use
    quantization: str = "auto"  # auto, none, int8 or int4
    # Positions of a cache of fixed size, with steps of rounded sizes and prefills of several jobs. 0: on a GPU, as many
    # as fit beside the weights; elsewhere none of that.
    positions: int = 0
    keep: bool = False  # quantized weights of a gigabyte or more on disk, so that the next load is quick


class Backend(Protocol):
    """Called by one thread only, except `audio_tokens` and the attributes, which any thread may read."""

    tokenizer: VoxtralTokenizer
    limits: Limits
    context_length: int  # tokens of prompt and answer together
    description: str  # model, device and precision, for people
    device: str
    memory_bytes: int  # of the weights

    def audio_tokens(self, samples: int) -> int:
        """Audio tokens in the prompt for `samples` samples at 16 kHz."""

    def size(self, job: Job) -> Size:
        """What a job takes of the limits."""

    def prefill(self, jobs: list[Job], row: int) -> torch.Tensor:
        """Hear the audio of jobs and read their prompts into `row` and those after it.

        Logits (jobs, vocabulary) of their first tokens. After an error the rows before `row` are as they were.
        """

    def decode(self, tokens: list[int]) -> torch.Tensor:
        """One step for rows 0 to n-1, given the token each chose last. Logits (n, vocabulary), until the next step."""

    def align(self, job: Job, row: int, tokens: list[int]) -> list[tuple[int, int]]:
        """Where in the job's one recording each of the tokens that it wrote into `row` was spoken: its first sample and
        the one after its last. The row can only be given up afterwards."""

    def move_row(self, source: int, target: int) -> None:
        """Overwrite `target` by `source`, whose job goes on there."""

    def release_memory(self) -> None:
        """No row is in use: give back what only running jobs need."""

    def free_memory(self) -> int:
        """Bytes that are free where the weights are."""

    def close(self) -> None:
        """Give back all memory. Nothing else may be called afterwards."""
