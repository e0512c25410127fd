"""From frames to text with help: beam search, n-grams, the frozen LLM, several projectors.

What the methods are is told in `reading_config`. Everything a language model is shown or counts is
training text.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax import beam, checks, language, ngram, related
from tiny_align_jax.aligner import Aligner, Ear, project
from tiny_align_jax.candidates import Candidate, choose, ranked
from tiny_align_jax.data import batching
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.reading_config import Config
from tiny_align_jax.train import corpus
from tiny_align_jax.types import Array, ConfigError, DataError, Frozen, PyTree

_MEASURED = 16  # utterances that the cost is measured on
_BATCH = 16  # utterances heard at a time: [batch, tokens, rows] log-probabilities
_NUM_RELATED = 24  # training sentences about what a user says


class Reader:
    """An aligner that reads with help.

    Attributes:
        config: how.
        seconds: spent so far on 'hear', 'search' and 'judge', compilation included.
    """

    def __init__(
        self,
        aligner: Aligner,
        config: Config,
        texts: Sequence[str] = (),
        members: Sequence[Aligner] = (),
    ):
        """Counts n-grams and shows the LLM its context.

        Args:
            aligner: hears, with the LLM loaded if the method needs it.
            config: how to read.
            texts: training transcripts.
            members: the aligners of `config.members`.

        Raises:
            ConfigError: an objective without probabilities, members of other rows or another encoder,
                no texts where they are needed, or an LLM that is needed and was not loaded.
        """
        if config.method == "greedy":
            raise ConfigError("greedy reading needs no reader; use `Aligner.hear`")
        _check_members(aligner, members)
        if not texts and (config.needs_ngram or (config.needs_llm and config.context)):
            raise ConfigError(
                "training transcripts are needed for n-grams and for the LLM's context; give them, or "
                "set ngram_weight and context to 0"
            )
        self.config = config
        self.seconds: dict[str, float] = dict.fromkeys(("hear", "search", "judge"), 0.0)
        self._aligner, self._aligners = aligner, (aligner, *members)
        self._ngram = self._ngram_score = self._judge = None
        if config.needs_ngram:
            self._ngram = count_ngrams(aligner, texts, config.ngram_texts, config.ngram_order)
            self._ngram_score = language.ngram_score(self._ngram)
        if config.needs_llm:
            sentences = draw_context(texts, config.context, config.seed)
            # A user's own sentences come last, nearest to the text that is judged: they tell what is
            # likely from this user (docs/personalization.md has the figures).
            own = aligner.user_texts
            near = related.Related(texts).to(own, _NUM_RELATED) if own else []
            sentences += [*near, *own]
            self._judge = language.LlmJudge(aligner.require_llm(), aligner.tokenizer, sentences)

    def read(
        self, frames: Sequence[np.ndarray], on_done: Callable[[int], object] | None = None
    ) -> list[str]:
        """The text of every utterance, '' where nothing was said.

        Args:
            frames: encoder frames, one [T_i, E] array an utterance.
            on_done: called with the number of utterances searched since the last call.
        """
        return [choose(found, self.config) for found in self.candidates(frames, on_done)]

    def about(self, frames: Sequence[np.ndarray]) -> dict[str, Any]:
        """Settings and cost, once `read` has compiled everything: for metrics.json.

        Args:
            frames: of the utterances to measure with; at most 16 are drawn.
        """
        spent = {stage: round(s, 2) for stage, s in self.seconds.items()}
        drawn = [frames[i] for i in np.random.default_rng(0).permutation(len(frames))[:_MEASURED]]
        self.read(drawn)  # fewer utterances are other batches, which compile anew
        start_s = time.monotonic()
        self.read(drawn)
        each_s = (time.monotonic() - start_s) / len(drawn)
        return {
            **dataclasses.asdict(self.config),
            "seconds": spent,
            "seconds_per_utterance": round(each_s, 5),
        }

    def candidates(
        self, frames: Sequence[np.ndarray], on_done: Callable[[int], object] | None = None
    ) -> list[list[Candidate]]:
        """Texts of every utterance with what each judge says, best first."""
        heard = self._timed("hear", lambda: self.emissions(frames))
        score = self._fused_score()
        hypotheses = self._timed(
            "search", lambda: beam.search(heard, self._beam_config(), score, on_done=on_done)
        )
        found = [self._merge(h) for h in hypotheses]
        if self._judge:
            found = self._timed("judge", lambda: self._judged(found))
        return [ranked(candidates, self.config) for candidates in found]

    def emissions(self, frames: Sequence[np.ndarray]) -> list[beam.Emissions]:
        """Pruned probabilities of every utterance, averaged over the members."""
        found: dict[int, beam.Emissions] = {}
        size = min(_BATCH, len(frames))
        for batch in batching.batches_of(batching.of_frames(frames), size, 3):
            outputs = jax.device_get(self._hear(batch.features_BTE, batch.num_frames_B))
            for row in np.flatnonzero(batch.weight_B):
                rows_AK, log_probs_AK, blank_A, mask_A = (x[row] for x in outputs)
                n = int(mask_A.sum())
                found[int(batch.index_B[row])] = beam.Emissions(
                    rows_AK[:n], log_probs_AK[:n], blank_A[:n]
                )
        return [found[i] for i in range(len(frames))]

    def _hear(self, features_BTE: Array, num_frames_B: Array) -> tuple[Array, ...]:
        heard = [
            _log_probs(a.ear, a.params, a.frozen, features_BTE, num_frames_B)
            for a in self._aligners
        ]
        return _top([log_probs for log_probs, _ in heard], heard[0][1], self.config.top_rows)

    def _beam_config(self) -> beam.Config:
        c = self.config
        return beam.Config(
            width=max(c.width, c.num_best),
            top_rows=c.top_rows,
            margin=c.margin,
            row_bonus=c.beam_row_bonus,
        )

    def _fused_score(self) -> beam.Score | None:
        c, opinions = self.config, []
        if self._ngram_score:
            opinions.append((c.beam_ngram_weight, self._ngram_score))
        if c.method == "fusion" and self._judge:
            opinions.append((c.llm_weight, self._judge.score(self._aligner.vocabulary)))
        return language.mix(opinions)

    def _merge(self, hypotheses: Sequence[beam.Hypothesis]) -> list[Candidate]:
        """The best texts; rows that spell the same text are one."""
        found: dict[str, Candidate] = {}
        for h in hypotheses:
            text = self._aligner.vocabulary.decode(h.rows)
            if text in found:
                total = float(np.logaddexp(found[text].ctc, h.log_prob))
                found[text] = dataclasses.replace(found[text], ctc=total)
            elif len(found) < self.config.num_best:
                said = self._ngram.log_prob(h.rows) if self._ngram else 0.0
                found[text] = Candidate(text, len(h.rows), h.log_prob, said)
        return list(found.values())

    def _judged(self, found: Sequence[Sequence[Candidate]]) -> list[list[Candidate]]:
        """All texts of all utterances through the LLM, each once."""
        assert self._judge
        texts = list(dict.fromkeys(c.text for candidates in found for c in candidates))
        said = dict(zip(texts, self._judge.log_probs(texts).tolist(), strict=True))
        return [[dataclasses.replace(c, llm=said[c.text]) for c in cs] for cs in found]

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        start_s = time.monotonic()
        result = work()
        self.seconds[stage] += time.monotonic() - start_s
        return result


@functools.partial(jax.jit, static_argnames=("ear",))
def _log_probs(
    ear: Ear, params: PyTree, frozen: Frozen, features_BTE: Array, num_frames_B: Array
) -> tuple[Array, Array]:
    audio_BAD, audio_mask_BA = project(ear, params, features_BTE, num_frames_B)
    log_probs = ear.objective.log_probs(
        ear.objective_config, params["objective"], audio_BAD, frozen
    )
    return log_probs, audio_mask_BA


@functools.partial(jax.jit, static_argnames=("count",))
def _top(
    members: Sequence[Array], audio_mask_BA: Array, count: int
) -> tuple[Array, Array, Array, Array]:
    """The likeliest rows under the members' mean probability.

    The mean is arithmetic: members place the same token an audio token apart, and a product would
    take it from both places.
    """
    log_probs_BAV = jax.nn.logsumexp(jnp.stack(members), axis=0) - jnp.log(len(members))
    # Row 0 ends a text; it is never spoken.
    spoken = log_probs_BAV[..., 1:-1]
    values, rows = jax.lax.top_k(spoken, min(count, spoken.shape[-1]))
    return rows + 1, values, log_probs_BAV[..., -1], audio_mask_BA


def draw_context(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Training sentences for the LLM to see, in spoken form, without repeats."""
    spoken = sorted({spoken_form(t) for t in texts} - {""})
    drawn = np.random.default_rng(seed).permutation(len(spoken))[:count]
    return [spoken[i] for i in drawn]


def transcripts(aligner: Aligner) -> list[str]:
    """The transcripts that the aligner was trained on, from its corpus."""
    return [u.text for u in corpus.read_split(aligner.config).train]


def load(aligner: Aligner, cache_dir: str | os.PathLike, config: Config) -> Reader | None:
    """A reader with its members and training transcripts; None for greedy reading, which needs none.

    Raises:
        CheckpointError: a member that is no trained workdir.
        ConfigError, DataError: as `Reader`; of the corpus.
    """
    if config.method == "greedy":
        return None
    members = [Aligner.load(m, cache_dir, need_llm=False) for m in config.members]
    texts: Sequence[str] = ()
    if config.transcripts:
        texts = checks.lines_of("transcripts", config.transcripts)
    elif config.needs_ngram or (config.needs_llm and config.context):
        texts = transcripts(aligner)
    return Reader(aligner, config, texts, members)


def count_ngrams(
    aligner: Aligner, texts: Sequence[str], further_texts: str = "", order: int = 3
) -> ngram.Ngram:
    """N-grams of transcripts and of the lines of a file; those that no rows spell are left out."""
    further = checks.lines_of("ngram_texts", further_texts) if further_texts else []
    rows, left_out = [], 0
    for text in [*texts, *further]:
        try:
            rows.append(aligner.vocabulary.encode(text).tolist())
        except DataError:
            left_out += 1
    if left_out:
        logging.warning(
            "%d of %d sentences left out of the n-grams", left_out, len(texts) + len(further)
        )
    return ngram.build(rows, len(aligner.vocabulary), order)


def _check_members(aligner: Aligner, members: Sequence[Aligner]) -> None:
    problems = []
    for a in (aligner, *members):
        if not hasattr(a.ear.objective, "log_probs"):
            problems.append(
                f"objective {a.card['objective']['name']} gives no probabilities of rows"
            )
    for i, member in enumerate(members):
        if not np.array_equal(member.vocabulary.row_ids, aligner.vocabulary.row_ids):
            problems.append(f"member {i} reads other table rows: train it on the same transcripts")
        for key in ("fingerprint", "layers", "window_s"):
            if member.card["encoder"][key] != aligner.card["encoder"][key]:
                problems.append(f"member {i} has another encoder {key}")
    if problems:
        raise ConfigError("reading: " + "; ".join(problems))
