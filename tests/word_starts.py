"""How far the times that a server tells for words are from when they were spoken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tests.serving import Server
from tests.speech import Clip, clips_of, normal


def timed(server: Server, spoken: Clip, granularity: str) -> dict[str, Any]:
    """A clip's transcript with the times of its words or segments."""
    form = {"model": "whisper-1", "language": "en", "response_format": "verbose_json"}
    form["timestamp_granularities[]"] = granularity
    response = server.client.post("/v1/audio/transcriptions", files={"file": spoken.data}, data=form)
    assert response.status_code == 200, response.text
    return response.json()


def start_errors(server: Server, *kinds: str) -> np.ndarray:
    """Milliseconds, without sign, by which words of such clips begin at another time than they were spoken; of those
    only that were heard right."""
    with ThreadPoolExecutor(8) as threads:
        return np.abs(np.concatenate([*threads.map(partial(_late, server), clips_of(*kinds))]))


def _late(server: Server, spoken: Clip) -> list[float]:
    words = timed(server, spoken, "word")["words"]
    assert all(word["start"] < word["end"] for word in words)
    assert all(a["end"] <= b["start"] for a, b in pairwise(words))
    assert words[-1]["end"] <= spoken.seconds
    expected, heard = normal(spoken.words), normal(" ".join(word["word"] for word in words))
    matches = SequenceMatcher(None, expected, heard, autojunk=False).get_matching_blocks()
    pairs = [(a + i, b + i) for a, b, size in matches for i in range(size)]
    return [words[b]["start"] * 1000 - spoken.starts_ms[a] for a, b in pairs]
