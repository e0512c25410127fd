"""Generation with the frozen LLM: prompts as embeddings, batched, jitted once a bucket.

A row of the cache looks like `[prefix | padding | tail | answer]`. The prefix (instruction and worked
examples) is the same for all rows: its keys and values are computed once and broadcast. The tail
(audio, end of the prompt) is padded on its left to a bucket's length, so that every row's last prompt
token stands in the same slot. Positions count real tokens only.

One compiled program answers a batch: a `while_loop` up to a step that is an argument. Run to the end it
is fast; run `stream_chunk` steps at a time it streams.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import checks, decode_loop
from tiny_align_jax.decode_loop import NO_TOKEN, LanguageModel, Prefix, State
from tiny_align_jax.types import ConfigError, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """How to generate.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy; above, the softmax's temperature.
        top_k: sample among the k likeliest tokens only; 0 for all.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling. Row i of a call always draws the same, whatever stands beside it.
        tail_buckets: padded lengths of audio plus end of the prompt; longer ones are padded to a
            multiple of the last.
        batch_buckets: padded batch sizes; the last is the largest batch.
        stream_chunk: tokens between two looks at a streamed answer.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    tail_buckets: tuple[int, ...] = (16, 32, 64, 128, 256)
    batch_buckets: tuple[int, ...] = (1, 8, 32)
    stream_chunk: int = 4

    def __post_init__(self):
        problems = checks.below(self, 1, "max_new_tokens", "stream_chunk")
        if self.temperature < 0:
            problems.append(f"temperature={self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            problems.append(f"top_k={self.top_k}; expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}; expected above 0 and at most 1")
        for name in ("tail_buckets", "batch_buckets"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                problems.append(f"{name}={sizes}; expected growing sizes from 1 up")
        checks.refuse("decode", problems)


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        ids: generated ids, without the stop id.
        stopped: True if a stop id ended it, False if it ran to `max_new_tokens`.
        log_prob: log-probability of the ids (and the stop id) under the unscaled model.
    """

    ids: tuple[int, ...]
    stopped: bool
    log_prob: float


class Generator:
    """Answers prompts given as embeddings. Not for use from several threads at once."""

    def __init__(
        self,
        model: LanguageModel,
        params: PyTree,
        stop_ids: Sequence[int],
        config: Config | None = None,
    ):
        """Args: model and its params; ids that end an answer; how to generate.

        Raises:
            ConfigError: no stop id, or one outside the vocabulary.
        """
        vocab_size = model.config.vocab_size
        wrong = [i for i in stop_ids if not 0 <= i < vocab_size]
        if wrong or not stop_ids:
            raise ConfigError(
                f"stop ids {list(stop_ids)}; expected at least one, each below the vocabulary's "
                f"{vocab_size}: does the tokenizer belong to this LLM?"
            )
        self.model, self.config = model, config or Config()
        # Once, here: arrays of the host would travel to the device with every call.
        self.params = jax.device_put(params)
        c = self.config
        self._sampling = decode_loop.Sampling(c.max_new_tokens, c.temperature, c.top_k, c.top_p)
        self._stop_ids_K = jnp.array(sorted(set(stop_ids)), jnp.int32)

    def cache_prefix(self, prefix_ids: Sequence[int] | np.ndarray) -> Prefix | None:
        """Keys and values of a prompt's first part, to be shared by all later calls."""
        if len(prefix_ids) == 0:
            return None
        ids_P = jnp.asarray(prefix_ids, jnp.int32)
        return Prefix(
            decode_loop.read_prefix(self.model, self.params, ids_P), num_tokens=len(prefix_ids)
        )

    def generate(
        self,
        tails: Sequence[np.ndarray],
        prefix: Prefix | None = None,
        on_batch: Callable[[int], Any] | None = None,
    ) -> list[Generation]:
        """Answers of many prompts, in their order.

        Args:
            tails: embeddings of what follows the prefix, one [N_i, D] array a prompt.
            prefix: from `cache_prefix`, None if the tails are whole prompts.
            on_batch: called with the number of prompts done since the last call.

        Raises:
            ConfigError: a tail that is empty, not finite, or not as wide as the LLM.
        """
        self._check(tails)
        answers: list[Generation | None] = [None] * len(tails)
        # Neighbours in length share a batch: less padding. Results do not depend on it.
        order = sorted(range(len(tails)), key=lambda i: len(tails[i]))
        size = self.config.batch_buckets[-1]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            state = self._begin([tails[i] for i in rows], rows, prefix)
            state = self._advance(state, self.config.max_new_tokens)
            for i, generation in zip(rows, self._finish(state), strict=False):
                answers[i] = generation
            if on_batch:
                on_batch(len(rows))
        return [a for a in answers if a is not None]

    def stream(self, tail: np.ndarray, prefix: Prefix | None = None) -> Iterator[int]:
        """Ids of one answer as they come; the first right after the prompt is read.

        Raises:
            ConfigError: as `generate`.
        """
        self._check([tail])
        state, shown = self._begin([tail], [0], prefix), 0
        while True:
            ids = self._finish(state)[0].ids
            yield from ids[shown:]
            shown = len(ids)
            if bool(state.finished_B[0]) or int(state.step) >= self.config.max_new_tokens:
                return
            state = self._advance(state, int(state.step) + self.config.stream_chunk)

    def _check(self, tails: Sequence[np.ndarray]) -> None:
        problems = []
        for i, tail in enumerate(tails):
            if tail.ndim != 2 or tail.shape[1] != self.model.config.dim or not len(tail):
                problems.append(f"{i} has shape {tail.shape}")
            elif not np.isfinite(tail).all():
                problems.append(f"{i} holds NaN or infinite values")
        if problems:
            raise ConfigError(
                f"prompt(s) that cannot be read, expected finite [tokens, {self.model.config.dim}]: "
                + "; ".join(problems[:10])
            )

    def _begin(
        self, tails: Sequence[np.ndarray], rows: Sequence[int], prefix: Prefix | None
    ) -> State:
        """Reads the prompts of one batch and draws every row's first token."""
        batch = _bucket(len(tails), self.config.batch_buckets)
        length = _bucket(max(len(t) for t in tails), self.config.tail_buckets)
        padded_BRD = np.zeros((batch, length, self.model.config.dim), np.float32)
        mask_BR = np.zeros((batch, length), bool)
        row_B = np.zeros(batch, np.int32)
        for i in range(batch):
            source = min(i, len(tails) - 1)  # fill rows repeat the last prompt
            tail = tails[source]
            padded_BRD[i, length - len(tail) :] = tail
            mask_BR[i, length - len(tail) :] = True
            row_B[i] = rows[source]
        is_fill_B = np.arange(batch) >= len(tails)
        inputs = (prefix, padded_BRD, mask_BR, is_fill_B, row_B, self.config.seed, self._stop_ids_K)
        return decode_loop.read_tail(self.model, self._sampling, self.params, *inputs)

    def _advance(self, state: State, until: int) -> State:
        until = min(until, self.config.max_new_tokens)
        return decode_loop.run(
            self.model, self._sampling, self.params, state, self._stop_ids_K, until
        )

    def _finish(self, state: State) -> list[Generation]:
        ids_BM, stops = np.asarray(state.ids_BM), np.asarray(self._stop_ids_K)
        finished_B, log_prob_B = np.asarray(state.finished_B), np.asarray(state.log_prob_B)
        answers = []
        for ids, finished, log_prob in zip(ids_BM, finished_B, log_prob_B, strict=True):
            kept = ids[(ids != NO_TOKEN) & ~np.isin(ids, stops)]
            answers.append(Generation(tuple(kept.tolist()), bool(finished), float(log_prob)))
        return answers


def _bucket(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `size`, or a multiple of the largest."""
    fitting = [b for b in buckets if b >= size]
    return fitting[0] if fitting else -(-size // buckets[-1]) * buckets[-1]
