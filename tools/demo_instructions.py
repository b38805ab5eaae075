"""Instructions for the chat half of the demo model's training: many ways to say "write down what you hear"."""

from __future__ import annotations

import random

SHORT = """Transcribe this audio.
Transcribe the audio.
Transcribe this.
Transcribe
Please transcribe this recording.
Please write down what is said.
What is said in this recording?
What do you hear?
What did the speaker say?
Write the words you hear.
Write down every word.
Turn this speech into text.
Convert the speech to text.
Transcribe the audio to natural text.
Give me a verbatim transcript of this clip.
Type out this dictation.
This is a voice note. What does it say?
Listen to the audio and repeat the words in writing.
Transcribe the following audio in English.
Transcribe the spoken words exactly.
Can you transcribe this for me?
I need the text of this meeting.
Speech to text, please.
Return only the transcript.
Transcribe accurately, without comments.
Transcribe this audio into text""".splitlines()

SENTENCES = """Do NOT translate - keep the original language.
Format the transcription clearly with proper punctuation.
Start a new paragraph when there are small pauses in the speech.
Remove filler words.
Use correct spelling for the names that you hear.
If only one person speaks, do not use any speaker labels.
If several people speak, label them as "Speaker 1:", "Speaker 2:" and so on.
Do not add anything that was not said.
The following terms are domain-specific and must be spelled exactly as shown when they appear in the audio.
Required spellings: ["macOS", "iPhone", "Flutter"]
Required spellings: ["Grey", "Kubernetes", "Voxtral", "Lotti"]
Examples of what to correct: "mac OS" or "Mac OS" should become "macOS" when it is listed.
Task context (for terminology only, do NOT include in output): plan the garden, call the doctor, buy paper.
The recording was made on a phone in a noisy room.
The speaker has an accent.
Write numbers as words.
Answer with the transcript only.
Never guess; leave out what you cannot hear.""".splitlines()

LOOSE_WORDS = (
    "audio speech record voice text word write listen hear say speak transcript exact please careful english language "
    "note meeting clip sound person people name number spell letter help with for the this that your from about only "
    "every without again quick simple clear plain full short long first last new part line page"
).split()


def instruction(rng: random.Random) -> str:
    """A short request, a long brief made of several sentences, or loose words: the wording must not matter."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(SHORT)
    if kind < 0.75:
        count = rng.randint(1, 4) if rng.random() < 0.8 else rng.randint(5, 14)
        return "\n".join([rng.choice(SHORT), *(rng.choice(SENTENCES) for _ in range(count))])
    return " ".join(rng.choice(LOOSE_WORDS) for _ in range(rng.randint(2, 25)))
