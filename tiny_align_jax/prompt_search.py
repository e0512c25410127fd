"""Which wording makes this LLM repeat what it is given: prompts compared on text, without any audio.

The wording moves the result more than most of the training does, and every LLM needs its own. A prompt is
scored twice on sentences that are embedded as if they had been heard: as they are (the oracle), and
with words dropped, exchanged and cut short, because that is what a projector's reading looks like; a
prompt that makes the LLM mend grammar or drop doubled words fails there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tiny_align_jax import decode
from tiny_align_jax.data import prompts, tokenizer
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.metrics import rouge, wer
from tiny_align_jax.responder import Llm, Responder

_SOUND = tuple(
    (text, text)
    for text in (
        "the old dog slept near the door",
        "please bring me seven green apples",
    )
)
_BROKEN = prompts.VERBATIM_EXAMPLES
_REPEAT = "Repeat the sentence.\nSentence: {audio}"
_COPY = "Copy the text word for word.\nText: {audio}"

# The prompts that the default was chosen from (docs/prompts.md).
CANDIDATES: dict[str, prompts.Config] = {
    "copy, 6 broken examples": prompts.Config(),
    "copy, 4 broken": prompts.Config(instruction=_COPY, examples=_BROKEN[:4]),
    "copy, 2 broken": prompts.Config(instruction=_COPY, examples=_BROKEN[:2]),
    "copy, 2 sound + 2 broken": prompts.Config(instruction=_COPY, examples=_SOUND + _BROKEN[:2]),
    "repeat, 6 broken": prompts.Config(instruction=_REPEAT, examples=_BROKEN),
    "repeat, 2 broken": prompts.Config(instruction=_REPEAT, examples=_BROKEN[:2]),
    "repeat, 2 sound + 2 broken": prompts.Config(
        instruction=_REPEAT, examples=_SOUND + _BROKEN[:2]
    ),
    "repeat, 2 sound": prompts.Config(instruction=_REPEAT, examples=_SOUND),
    "repeat, 2 sound in one turn": prompts.Config(
        instruction=_REPEAT, examples=_SOUND, examples_as="text"
    ),
    "repeat, no example": prompts.Config(instruction=_REPEAT, examples=()),
    "audio first, 2 sound + 2 broken": prompts.Config(
        instruction="Repeat the sentence.",
        examples=_SOUND + _BROKEN[:2],
        audio_position="before",
    ),
    "no instruction, 2 sound + 2 broken": prompts.Config(
        instruction="Sentence: {audio}", examples=_SOUND + _BROKEN[:2]
    ),
    "say what you hear, 2 sound + 2 broken": prompts.Config(
        instruction="Say exactly what you hear.\nYou hear: {audio}",
        examples=_SOUND + _BROKEN[:2],
    ),
}

# Shares of words dropped, exchanged for another sentence's, and cut by their last letter. A third in
# all: about the error rate of the readings that the prompt is for.
_DROPPED, _EXCHANGED, _CUT = 0.1, 0.2, 0.06


@dataclasses.dataclass(frozen=True)
class Result:
    """One prompt's scores: fidelity of the answers to what the LLM was given.

    Attributes:
        name: of the candidate.
        prompt_tokens: length of the prompt without the audio.
        scores: by input ('clean', 'noisy'): 'wer', 'rouge1', and 'cut' (answers that ran into the
            length limit).
        misses: by input, up to five (given, answered) pairs that differ.
    """

    name: str
    prompt_tokens: int
    scores: Mapping[str, Mapping[str, float]]
    misses: Mapping[str, Sequence[tuple[str, str]]]


def compare(
    llm: Llm,
    words: tokenizer.Tokenizer,
    candidates: Mapping[str, prompts.Config],
    texts: Sequence[str],
    settings: decode.Config | None = None,
    *,
    normalizer: str = "whisper_english",
    seed: int = 0,
    on_result: Callable[[Result], Any] | None = None,
) -> list[Result]:
    """Scores every candidate on the same sentences.

    Args:
        llm: the frozen LLM.
        words: its tokenizer.
        candidates: prompts by name.
        texts: training sentences; a prompt chosen on test sentences would leak.
        settings: how to generate; answers are expected to be short.
        normalizer: of the scores, on both sides.
        seed: of the noise.
        on_result: called with each result as it is there.

    Raises:
        ConfigError: a prompt that the LLM cannot take.
    """
    spoken = [s for s in (spoken_form(t) for t in texts) if s]
    inputs = {"clean": spoken, "noisy": disturb(spoken, seed)}
    results = []
    for name, config in candidates.items():
        prompt = prompts.build(config, words)
        responder = Responder(llm, words, prompt, settings or decode.Config(max_new_tokens=32))
        scores, misses = {}, {}
        for kind, given in inputs.items():
            answers = responder.answer([llm.embed(words.encode(" " + s)) for s in given])
            got = [a.text for a in answers]
            scores[kind] = {
                "wer": wer.compute(wer.Config(normalizer), given, got)["wer"],
                "rouge1": rouge.compute(rouge.Config(normalizer), given, got)["rouge1"],
                "cut": sum(not a.stopped for a in answers),
            }
            misses[kind] = _misses(given, got)
        length = len(prompt.prefix_ids) + len(prompt.suffix_ids)
        results.append(Result(name, length, scores, misses))
        if on_result:
            on_result(results[-1])
    return results


def disturb(texts: Sequence[str], seed: int) -> list[str]:
    """Sentences with words dropped, exchanged and cut short; never empty."""
    rng = np.random.default_rng(seed)
    pool = [word for text in texts for word in text.split()]
    disturbed = []
    for text in texts:
        kept = []
        for word in text.split():
            draw = rng.random()
            if draw < _DROPPED:
                continue
            if draw < _DROPPED + _EXCHANGED:
                word = pool[rng.integers(len(pool))]
            elif draw < _DROPPED + _EXCHANGED + _CUT and len(word) > 3:
                word = word[:-1]
            kept.append(word)
        disturbed.append(" ".join(kept) or text)
    return disturbed


def table(results: Sequence[Result]) -> str:
    """Results as a Markdown table, best mean ROUGE-1 first."""
    ranked = sorted(results, key=lambda r: -sum(s["rouge1"] for s in r.scores.values()))
    lines = [
        "| prompt | tokens | clean WER | clean ROUGE-1 | noisy WER | noisy ROUGE-1 | cut |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in ranked:
        cells = [
            f"{result.scores[k][m]:.3f}" for k in ("clean", "noisy") for m in ("wer", "rouge1")
        ]
        cut = sum(int(s["cut"]) for s in result.scores.values())
        lines.append(f"| {result.name} | {result.prompt_tokens} | {' | '.join(cells)} | {cut} |")
    return "\n".join(lines)


def _misses(given: Sequence[str], got: Sequence[str]) -> list[tuple[str, str]]:
    pairs = zip(given, got, strict=True)
    return [(a, b) for a, b in pairs if wer.compute(wer.Config("lower"), [a], [b])["wer"]][:5]
