"""What the demo model is told while it learns: which word is spoken at each 80 ms, and which were before it."""

from __future__ import annotations

import numpy as np

from tools.demo_speech import SAMPLE_RATE, SPOKEN_WORDS, Recording

FRAMES_PER_SECOND = 100
FRAMES_PER_TOKEN = 8  # the encoder halves the frames, the projector joins four: one audio token is 80 ms
EARLIER_WORDS = (-1, -2)  # counted from the word being spoken
NO_WORD = len(SPOKEN_WORDS)  # nobody speaks here, or there is no such neighbour
WORD_CLASSES = NO_WORD + 1
WORD_CLASS = {word: i for i, word in enumerate(SPOKEN_WORDS)}


def words_at(recording: Recording, audio_tokens: int) -> np.ndarray:
    """Labels (audio_tokens, 3) for the middle of each 80 ms: the word being spoken, the one before it, and the one
    before that; NO_WORD where there is none. In a pause the last word spoken is the one before."""
    labels = np.full((audio_tokens, 1 + len(EARLIER_WORDS)), NO_WORD)
    if not recording.words:
        return labels
    classes = np.array([WORD_CLASS[word] for word in recording.words])
    middles = (np.arange(audio_tokens) + 0.5) * FRAMES_PER_TOKEN * SAMPLE_RATE / FRAMES_PER_SECOND
    starts, ends = np.array(recording.spans).T
    latest = np.searchsorted(starts, middles, side="right") - 1  # the last word that has begun; -1: none yet
    spoken = (latest >= 0) & (middles < ends[latest])
    labels[spoken, 0] = classes[latest[spoken]]
    for column, offset in enumerate(EARLIER_WORDS, start=1):
        earlier = np.where(spoken, latest, latest + 1) + offset
        labels[earlier >= 0, column] = classes[earlier[earlier >= 0]]
    return labels


def frames_of_words(recording: Recording, audio_tokens: int) -> np.ndarray:
    """For each 80 ms (audio_tokens,) the number of the word spoken there, -2 for none; each word has one at least."""
    numbers = np.full(audio_tokens, -2)
    samples = FRAMES_PER_TOKEN * SAMPLE_RATE // FRAMES_PER_SECOND
    for number, (start, end) in enumerate(recording.spans):
        first = min(round(start / samples), audio_tokens - 1)
        numbers[first : max(first + 1, round(end / samples))] = number
    return numbers
