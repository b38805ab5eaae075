"""The text of one chunk as it grows: which tokens are told already, and which are held back or taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from continuation import begins_word, goes_on, word_ends
from engine.loops import FAR_SUSPECT, LoopDetector
from engine.tokenizer import TextDecoder
from transcript import TextDelta, TextToken


class ChunkText:
    """Tokens to deltas. Tokens that repeat what stands before them are held back: once sent, text cannot be taken
    back, and they may be the beginning of a loop. After a long repeat nothing is told until all is known."""

    def __init__(self, held: bool = False) -> None:
        """`held`: nothing is told before the end."""
        self.text = ""
        self.tokens: list[TextToken] = []
        self._read = 0  # tokens that have become text
        self._sent = 0  # tokens that have left with a delta
        self.mixed = False  # of a first decoding, as far as it was told, and a second one
        self._held = held
        self._decoder, self._loops = TextDecoder(), LoopDetector()

    def add(self, token: TextToken) -> TextDelta | None:
        """What can be told now."""
        self.tokens.append(token)
        self._loops.add(token.id, token.bytes)
        return None if self._held or self._loops.suspect or self.went_back else self._tell(len(self.tokens))

    @property
    def went_back(self) -> bool:
        """Whether a long stretch of text stands twice."""
        return self._loops.went_back

    @property
    def sound(self) -> int:
        """Tokens that are no repeats of a loop."""
        return self._loops.sound

    def go_on_as(self, second: Sequence[TextToken]) -> None:
        """The rest of the text is that of a second decoding of the same audio. The word that was begun is ended, but
        for repeats of a loop that are part of it."""
        ends = word_ends(self.tokens[: max(self._read, self.sound)])
        kept = next((end for end in ends if end >= self._read), 0) if self._read else 0
        self.mixed = self._read > 0
        del self.tokens[kept:]
        escaped = self._loops.looping and 0 < kept - self.sound < FAR_SUSPECT  # repeats told before they were suspect
        told = self.tokens[: self.sound] if escaped else self.tokens
        self.tokens = joined([self.tokens, second[goes_on(told, second) :]])

    def cut(self, most: int) -> bool:
        """Keep `most` tokens at most. Whether there were more."""
        too_long = len(self.tokens) > most
        del self.tokens[most:]
        return too_long

    def finish(self) -> TextDelta | None:
        """What is left to tell."""
        return self._tell(len(self.tokens), final=True)

    def _tell(self, until: int, final: bool = False) -> TextDelta | None:
        piece = "".join(self._decoder.add(token.bytes) for token in self.tokens[self._read : until])
        self._read = until
        piece += self._decoder.finish() if final else ""
        piece = piece if self.text else piece.lstrip()
        if not piece:
            return None
        delta = TextDelta(piece, tuple(self.tokens[self._sent : until]))
        self.text, self._sent = self.text + piece, until
        return delta


def joined(parts: Sequence[Sequence[TextToken]]) -> list[TextToken]:
    """The tokens of texts that follow each other, with a space between them."""
    tokens: list[TextToken] = []
    for part in parts:
        first, rest = list(part[:1]), part[1:]
        if tokens and first and not begins_word(first[0].bytes):
            first = [replace(first[0], bytes=b" " + first[0].bytes)]
        tokens += [*first, *rest]
    return tokens
