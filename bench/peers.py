"""What the benches drive, and what with: a server that speaks OpenAI's API, or transformers in this process.

A peer is named by the address of a server (`http://127.0.0.1:11344`) or by `transformers:FOLDER`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import httpx
import numpy as np
import soundfile as sf

CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips"
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Heard:
    """Seconds from the request to its first text (to its end, where nothing was heard) and to its end."""

    first_text: float
    whole: float


class Peer(Protocol):
    name: str

    async def hear(self, audio: bytes) -> Heard:
        """Transcribe a file."""

    async def close(self) -> None: ...


class ServerPeer:
    def __init__(self, url: str, model: str, tokens: int | None) -> None:
        self.name = url.removeprefix("http://")
        self._form = {"model": model, "language": "en", "temperature": "0", "stream": "true"}
        if tokens:  # drawn: the likeliest ones of random weights go round in circles, which servers may stop
            self._form |= {"max_completion_tokens": str(tokens), "temperature": "1"}
        limits = httpx.Limits(max_connections=None)
        decoding_anew = {"Cache-Control": "no-store"}  # what this server has kept of an earlier round is not measured
        self._client = httpx.AsyncClient(base_url=url, timeout=7200, limits=limits, headers=decoding_anew)

    async def hear(self, audio: bytes) -> Heard:
        started, first = time.perf_counter(), None
        files = {"file": ("clip", audio)}
        async with self._client.stream("POST", "/v1/audio/transcriptions", files=files, data=self._form) as response:
            if response.is_error:
                raise RuntimeError(f"{self.name}: {(await response.aread()).decode()}")
            async for line in response.aiter_lines():
                if first is None and line.startswith("data: "):
                    first = time.perf_counter() - started
        whole = time.perf_counter() - started
        return Heard(first or whole, whole)

    async def close(self) -> None:
        await self._client.aclose()


class TransformersPeer:
    """`generate()`, one file after another; its first text is not told apart."""

    def __init__(self, folder: str, tokens: int | None) -> None:
        import torch
        from transformers import AutoProcessor, VoxtralForConditionalGeneration

        self.name, self._tokens, self._folder = "transformers", tokens or 500, folder
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor = AutoProcessor.from_pretrained(folder)
        model = VoxtralForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
        self._model = model.to(self._device).eval()
        self._turn = asyncio.Lock()

    async def hear(self, audio: bytes) -> Heard:
        started = time.perf_counter()
        async with self._turn:
            await asyncio.to_thread(self._generate, audio)
        whole = time.perf_counter() - started
        return Heard(whole, whole)

    def _generate(self, audio: bytes) -> None:
        import torch

        samples, rate = sf.read(io.BytesIO(audio), dtype="float32")
        inputs = self._processor.apply_transcription_request(
            audio=[samples], model_id=self._folder, language="en", sampling_rate=rate, format=["wav"]
        ).to(self._device, dtype=self._model.dtype)
        with torch.inference_mode():
            self._model.generate(**inputs, max_new_tokens=self._tokens, do_sample=False)

    async def close(self) -> None:
        del self._model


@asynccontextmanager
async def open_peers(args: argparse.Namespace) -> AsyncGenerator[list[Peer]]:
    """The peers that were named, each of which has heard something: who loads at the first request has loaded now."""
    peers = [peer_of(name, args.model, args.tokens) for name in args.peers]
    try:
        for peer in peers:
            await peer.hear(audio_files(args, 1, 0)[0])
        yield peers
    finally:
        for peer in peers:
            await peer.close()


def peer_of(name: str, model: str, tokens: int | None) -> Peer:
    if name.startswith("transformers:"):
        return TransformersPeer(name.removeprefix("transformers:"), tokens)
    return ServerPeer(name, model, tokens)


def arguments(description: str) -> argparse.ArgumentParser:
    """What all benches that drive peers understand."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("peers", nargs="+", metavar="PEER", help="http://HOST:PORT, or transformers:FOLDER")
    parser.add_argument("--model", default="whisper-1", help="the name that servers know the model by")
    parser.add_argument("--requests", type=numbers, default=(1, 4, 16), help="at once; several with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--noise", type=float, help="seconds of noise in place of the clips, for random weights and VOXTRAL_VAD=off"
    )
    parser.add_argument("--tokens", type=int, help="tokens to decode at most; random weights decode so many")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def audio_files(args: argparse.Namespace, count: int, round_number: int) -> list[bytes]:
    """`count` recordings: the committed clips of 5 s, or noise that no round has heard before."""
    if args.noise is None:
        clips = sorted(CLIPS.glob("voice_*.flac"))
        return [clips[i % len(clips)].read_bytes() for i in range(count)]
    return [noise(args.noise, seed=1000 * round_number + i) for i in range(count)]


def noise(seconds: float, seed: int) -> bytes:
    samples = np.random.default_rng(seed).standard_normal(int(SAMPLE_RATE * seconds)).astype(np.float32) * 0.05
    file = io.BytesIO()
    sf.write(file, samples, SAMPLE_RATE, format="WAV")
    return file.getvalue()


def seconds_of(files: list[bytes]) -> float:
    return sum(sf.info(io.BytesIO(file)).duration for file in files)


def table(heads: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Markdown, numbers with three digits."""
    cells = [heads, tuple("---" for _ in heads), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def middle(values: list[float]) -> float:
    return float(median(values))
