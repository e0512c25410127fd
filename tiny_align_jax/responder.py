"""The LLM behind one prompt: embeddings of what was heard in, text out."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tiny_align_jax import decode, joined
from tiny_align_jax.data import prompts, tokenizer
from tiny_align_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Llm:
    """A frozen LLM with its parameters: moved to the device and joined for decoding once, here."""

    model: decode.LanguageModel
    params: PyTree

    def __post_init__(self):
        object.__setattr__(self, "params", joined.for_decoding(self.params))

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Input embeddings, float32 [len(ids), D]."""
        if len(ids) == 0:
            return np.zeros((0, self.model.config.dim), np.float32)
        return np.asarray(self.model.embed(self.params, np.asarray(ids, np.int32)), np.float32)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The LLM's answer; `stopped` is False where it ran into the length limit."""

    text: str
    stopped: bool
    log_prob: float


class Responder:
    """Answers what was heard, under one prompt whose first part is read into the cache once.

    Attributes:
        prompt: the prompt around the audio.
    """

    def __init__(
        self,
        llm: Llm,
        words: tokenizer.Tokenizer,
        prompt: prompts.Prompt,
        settings: decode.Config,
    ):
        self.prompt = prompt
        self._words = words
        self._generator = decode.Generator(llm.model, llm.params, prompt.stop_ids, settings)
        self._suffix = llm.embed(prompt.suffix_ids)

    @functools.cached_property
    def _prefix(self) -> decode.Prefix | None:
        return self._generator.cache_prefix(self.prompt.prefix_ids)

    def answer(
        self, heard: Sequence[np.ndarray], on_batch: Callable[[int], Any] | None = None
    ) -> list[Answer]:
        """Answers to what `Aligner.snap` gave, in order; nothing heard is answered with nothing.

        Args:
            heard: one [tokens, D] array an utterance.
            on_batch: called with the number of utterances done since the last call.
        """
        spoken = [i for i, vectors in enumerate(heard) if len(vectors)]
        tails = [np.concatenate([heard[i], self._suffix]) for i in spoken]
        answers = [Answer("", True, 0.0)] * len(heard)
        for i, made in zip(
            spoken, self._generator.generate(tails, self._prefix, on_batch), strict=True
        ):
            text = self._words.decode(made.ids).strip()
            answers[i] = Answer(text, made.stopped, made.log_prob)
        return answers

    def stream(self, heard: np.ndarray) -> Iterator[str]:
        """Pieces of text of one answer as they come; none if nothing was heard."""
        if not len(heard):
            return
        text = tokenizer.TextStream(self._words)
        tail = np.concatenate([heard, self._suffix])
        for token_id in self._generator.stream(tail, self._prefix):
            if piece := text.push(token_id):
                yield piece
        if piece := text.flush():
            yield piece
