"""espeak-ng's library through ctypes: speech with the time at which each word begins, which its command keeps back.

The library has global state, so one process speaks one text at a time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache

import numpy as np

RETRIEVAL, UTF8, BY_CHARACTER = 1, 1, 1
RATE, PITCH = 1, 3  # espeak_PARAMETER
LIST_END, WORD = 0, 1  # espeak_EVENT_TYPE


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class Voice(ctypes.Structure):
    """espeak_VOICE of speak_lib.h; only `languages` is used, to choose by."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


class Espeak:
    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise SystemExit("espeak-ng is not installed. On Debian or Ubuntu: apt-get install espeak-ng")
        self._library = ctypes.CDLL(name)
        self.sample_rate = self._library.espeak_Initialize(RETRIEVAL, 500, None, 0)
        self._samples: list[np.ndarray] = []
        self._word_starts: dict[int, int] = {}  # character at which a word begins -> sample
        self._callback = Callback(self._receive)  # kept, or it would be collected while the library holds it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[Event]) -> int:
        if wave and count:
            self._samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        for i in range(1000):
            if events[i].type == LIST_END:
                break
            if events[i].type == WORD:
                self._word_starts.setdefault(events[i].text_position - 1, events[i].sample)
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> tuple[np.ndarray, dict[int, int]]:
        """int16 samples at `sample_rate`, and the sample at which the word begins that starts at a character.

        espeak-ng joins some short words ("in the") and says nothing of the second one's start.
        """
        self._samples, self._word_starts = [], {}
        self._set_voice(voice)
        self._library.espeak_SetParameter(RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        raw = text.encode() + b"\0"
        self._library.espeak_Synth(raw, len(raw), 0, BY_CHARACTER, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._samples), self._word_starts

    def _set_voice(self, voice: str) -> None:
        """By name, else by language, as the command line does: `en-us` is a name and `en-gb` is not."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            wanted = Voice(languages=voice.encode())
            if self._library.espeak_SetVoiceByProperties(ctypes.byref(wanted)) != 0:
                raise ValueError(f"espeak-ng has no voice {voice}")


@cache
def espeak() -> Espeak:
    return Espeak()
