"""What the demo model is told while it learns: which word is spoken at each 80 ms, and which were before it."""

from __future__ import annotations

import numpy as np

from tools.demo_speech import SAMPLE_RATE, SPOKEN_WORDS, Recording

FRAMES_PER_SECOND = 100
FRAMES_PER_TOKEN = 8  # the encoder halves the frames, the projector joins four: one audio token is 80 ms
EARLIER_WORDS = (-1, -2, -3)  # counted from the word being spoken
NEAR_TOKENS, OCTAVES, PER_OCTAVE = 24, 2, 6  # distances are told exactly up to here, then by the logarithm
NO_DISTANCE = NEAR_TOKENS + OCTAVES * PER_OCTAVE + 1
DISTANCE_CLASSES = NO_DISTANCE + 1
NO_WORD = len(SPOKEN_WORDS)  # nobody speaks here, or there is no such neighbour
WORD_CLASSES = NO_WORD + 1
WORD_CLASS = {word: i for i, word in enumerate(SPOKEN_WORDS)}


def words_at(recording: Recording, audio_tokens: int) -> np.ndarray:
    """Labels (audio_tokens, 4) for the middle of each 80 ms: the word being spoken and the three before it.

    NO_WORD where there is none. In a pause the last word spoken is the one before.
    """
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
    """For each 80 ms (audio_tokens,) the number of the word spoken there; each word has one at least.

    -2 where nobody speaks, but after the last word its number and one: what ends the text is to be found there.
    """
    numbers = np.full(audio_tokens, -2)
    samples = FRAMES_PER_TOKEN * SAMPLE_RATE // FRAMES_PER_SECOND
    for number, (start, end) in enumerate(recording.spans):
        first = min(round(start / samples), audio_tokens - 1)
        numbers[first : max(first + 1, round(end / samples))] = number
    numbers[round(recording.spans[-1][1] / samples) if recording.spans else 0 :] = len(recording.spans)
    return numbers


def distances(recording: Recording, audio_tokens: int) -> np.ndarray:
    """Classes (audio_tokens, 2): how many audio tokens ago the word before this one, and the one before it, ended."""
    labels = np.full((audio_tokens, 2), NO_DISTANCE)
    if not recording.words:
        return labels
    numbers = frames_of_words(recording, audio_tokens)
    samples = FRAMES_PER_TOKEN * SAMPLE_RATE // FRAMES_PER_SECOND
    lasts = np.array([max(round(start / samples), round(end / samples) - 1) for start, end in recording.spans])
    here = np.arange(audio_tokens)
    following = np.where(numbers >= 0, numbers, np.maximum.accumulate(numbers) + 1)
    for column in range(2):
        earlier = following - 1 - column
        known = (earlier >= 0) & (following >= 0)
        far = np.maximum(here[known] - lasts[earlier[known]], 0)
        logs = NEAR_TOKENS + PER_OCTAVE * np.log2(np.maximum(far, NEAR_TOKENS) / NEAR_TOKENS)
        labels[known, column] = np.where(far < NEAR_TOKENS, far, np.minimum(logs, NO_DISTANCE - 1))
    return labels
