"""Prompts and the clock of Voxtral Realtime, by the official tokenizer.

The model hears one audio embedding and writes one token for every 80 ms. Its prompt is a pad for each 80 ms of silence
before the audio and for each of the delay; what it writes afterwards follows what it hears by the delay.
"""

from __future__ import annotations

from pathlib import Path

from mistral_common.tokens.tokenizers.base import SpecialTokens

from engine.core import Prompt, PromptInvalid
from engine.tokenizer import VoxtralTokenizer
from transcript import Conversation


class RealtimeTokenizer(VoxtralTokenizer):
    follows_instructions = False

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for a vocabulary without a streaming format."""
        super().__init__(folder)
        instruct = self._mistral.instruct_tokenizer
        self._encoder, self._start = instruct.audio_encoder, instruct.start()
        self._audio = self._encoder.audio_config
        if not self._audio.is_streaming:
            raise ValueError("tekken.json describes no streaming format")
        self.pad = self._encoder.streaming_pad
        self.word = self._tekken.get_special_token(SpecialTokens.streaming_word.value)
        self.silent = frozenset((self.pad, self.word))
        self.step = self._audio.raw_audio_length_per_tok  # samples of a token
        self.left_pads = self._audio.n_left_pad_tokens

    def prompt(self, delay_ms: int) -> list[int]:
        """Tokens that are known before anything is heard."""
        return [*self._start, *self._encoder.encode_streaming_tokens(delay_ms)]

    def delay(self, delay_ms: int) -> int:
        """In tokens."""
        return self._audio.get_num_delay_tokens(delay_ms)

    def silence_after(self, samples: int, delay_ms: int) -> int:
        """Samples of silence behind `samples` in which the model writes all that it still has to."""
        return -samples % self.step + self._audio.n_right_pad_tokens(delay_ms) * self.step

    def _transcription_prompt(self, language: str | None) -> Prompt:
        """One recording and no text: this model recognises the language itself, and can't be told."""
        return Prompt((tuple(self._start), ()))

    def chat_prompt(self, conversation: Conversation) -> tuple[Prompt, str | None]:
        raise PromptInvalid(
            "This model writes down what it hears and follows no instructions. Write nothing but words to "
            "expect, with commas between, or choose another model."
        )
