"""One user's voice: from a few spoken sentences to a small state that changes a base projector.

The base is never touched. One copy leaves the validation utterances out and tells where to stop; then
another learns from all of them up to that point, by the same program. Where no checkpoint
beats the base on the validation utterances there is no second copy: the base is kept, and the result says so. Where
a recipe names a checkpoint that was best for others, validation only has a veto. The
word prior, too, is left out if one made of the other utterances adds word errors to those held back.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from concurrent import futures

import jax
import numpy as np
from absl import logging

from tiny_align_jax import aligner as aligner_lib
from tiny_align_jax import heap, programs
from tiny_align_jax.adapt import crew, fit, replay, user, word_prior
from tiny_align_jax.adapt.recipe import Config, Recipe, make_spec, most_loss
from tiny_align_jax.adapt.state import State
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import vocabulary
from tiny_align_jax.features import pipeline
from tiny_align_jax.metrics import wer
from tiny_align_jax.train.run import peak_rss_bytes
from tiny_align_jax.types import DataError, Frozen, PyTree, Utterance


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one user.

    Attributes:
        state: to save.
        valid_losses: validation loss at each checkpoint, the base first; empty without validation.
        checkpoint: the one that was kept; 0 is the base.
        skipped: utterances left out, with the reason.
        seconds: wall time since the start at the end of each stage.
        peak_rss_mb: peak resident memory of the process so far.
    """

    state: State
    valid_losses: tuple[float, ...]
    checkpoint: int
    skipped: Mapping[str, str]
    seconds: Mapping[str, float]
    peak_rss_mb: float

    def __str__(self) -> str:
        lines = [f"  {name}: {why}" for name, why in self.skipped.items()]
        if lines:
            lines.insert(0, f"{len(lines)} utterance(s) skipped:")
        if self.valid_losses:
            shown = " ".join(f"{loss:.3f}" for loss in self.valid_losses)
            lines.append(f"validation loss, base first: {shown}")
        kept = f"checkpoint {self.checkpoint}" if self.checkpoint else "the base's weights"
        parts = [f"{name} {second:.2f}" for name, second in self.seconds.items()]
        lines.append(
            f"kept {kept}; seconds until {', '.join(parts)}; peak {self.peak_rss_mb:.0f} MB"
        )
        return "\n".join(lines)


def personalize(
    aligner: Aligner,
    workdir: str | os.PathLike,
    cache_dir: str,
    name: str,
    utterances: Sequence[Utterance],
    how: Recipe,
    words: Sequence[str] = (),
) -> Result:
    """Adapts a base to one user.

    Args:
        aligner: the base; its LLM is not needed.
        workdir: where it was loaded from.
        cache_dir: folder of weights and features.
        name: of the user.
        utterances: what the user said, with transcripts.
        how: method and numbers.
        words: names and phrases that the user wants to be heard.

    Raises:
        DataError: too few usable utterances.
        TinyAlignError: of any stage.
    """
    began_s, seconds = time.monotonic(), {}

    def lap(stage: str) -> None:
        seconds[stage] = round(time.monotonic() - began_s, 3)

    reaches = how.method.needs_encoder
    recordings = user.read(aligner, utterances)
    _check_enough(name, recordings, how)
    other = replay.find(aligner, workdir, cache_dir, how.adapt.replay_count, reaches)
    lap("read")
    own, wide, targets = _with_rows(aligner, recordings, words)
    if not reaches:
        if _reads_ahead():
            _read_ahead(wide, how, user.silent(aligner, recordings).corpus(own, targets), other)
        heard, recordings = recordings, user.encode(aligner, recordings)
        if recordings.used != heard.used:
            _check_enough(name, recordings, how)
            own, wide, targets = _with_rows(aligner, recordings, words)
    lap("encoded")
    texts = [u.text for u in recordings.used]
    extra = own.vocabulary.row_ids[len(aligner.vocabulary) :]
    corpus = recordings.corpus(own, targets)
    if recordings.frames:
        how = _with_good_prior(own, wide, how, (corpus, texts), targets, other, words)
    bias = _row_bias(own, how, targets, other, words)
    delta, losses, checkpoint = {}, (), 0
    if how.method.trains:
        heap.give_back()  # what the encoder needed
        delta, losses, checkpoint = _adapt(wide, how, corpus, other, _hide(wide, bias))
        if not checkpoint:
            logging.warning("%s: nothing beat the base on validation, so the base is kept", name)
    lap("adapted")
    about = {
        "recipe": dataclasses.asdict(how),
        "texts": [vocabulary.spoken_form(text) for text in texts],
        "valid_losses": list(losses),
        "checkpoint": checkpoint,
        "words": list(words),
    }
    state = State(
        name, user.fingerprint(workdir), delta, extra, bias if np.any(bias) else None, about
    )
    peak_mb = round(peak_rss_bytes() / 1e6, 1)
    return Result(state, losses, checkpoint, recordings.skipped, seconds, peak_mb)


def _check_enough(name: str, recordings: user.Recordings, how: Recipe) -> None:
    held_back = how.adapt.num_validation
    if len(recordings.used) <= held_back:
        raise DataError(
            f"{len(recordings.used)} usable utterance(s) of {name!r}, {held_back} of them to be held back; "
            f"record more, or lower adapt.num_validation. Skipped: {recordings.skipped or 'none'}"
        )


def _with_rows(aligner: Aligner, recordings: user.Recordings, words: Sequence[str]):
    """The aligner with the rows that a user needs, with those that fill them up, and the targets."""
    texts = [u.text for u in recordings.used]
    extra = vocabulary.missing_ids(aligner.vocabulary, [*texts, *words])
    own = dataclasses.replace(aligner, vocabulary=user.extended(aligner, extra))
    targets = [own.vocabulary.encode(text) for text in texts]
    return own, user.extend_whole(aligner, extra), targets


def read_ahead() -> None:
    """Begins to read what the last users' programs were, for one to come; best while a base is loaded.

    A user whose recordings are as long as theirs waits for none of them then.
    """
    if _reads_ahead():
        programs.read_ahead((fit.run, pipeline.encode, aligner_lib.hear_batch))


def _reads_ahead() -> bool:
    """On a CPU it would save half a second of eleven, and the encoder's memory and the program's add up there."""
    return jax.default_backend() != "cpu"


def _read_ahead(wide: Aligner, how: Recipe, corpus: fit.Corpus, other: replay.Replay) -> None:
    """Begins to read the programs for a corpus of such shapes, in a thread; those that call them wait for it."""
    held_back = _held_back(how.adapt, len(corpus.num_frames_N))
    no_bias = np.zeros(len(wide.vocabulary), np.float32)
    inputs, num_frames = corpus.inputs[held_back], corpus.num_frames_N[held_back]

    def read() -> None:
        if how.word_prior.weight and held_back.any():
            _biased(wide, no_bias).prepare_to_hear(inputs, num_frames)
        if how.method.trains:
            spec, arguments = _program(wide, how, corpus, other)
            jobs = _job(how.adapt, held_back, no_bias)
            settings = _settings(how, spec, arguments[-1], how.fit.num_checkpoints)
            fit.run.prepare(spec, *arguments, jobs, settings)

    pool = futures.ThreadPoolExecutor(1, thread_name_prefix="programs")
    pool.submit(read)
    pool.shutdown(wait=False)


def _biased(wide: Aligner, bias_V: np.ndarray) -> Aligner:
    """The aligner with a bias on its table rows."""
    objective = {**wide.params["objective"], "row_bias": bias_V}
    return dataclasses.replace(wide, params={**wide.params, "objective": objective})


def _row_bias(own: Aligner, how: Recipe, targets, other: replay.Replay, words) -> np.ndarray:
    """The user's word prior over all rows, those that the base lacks included."""
    missing = len(own.vocabulary) - other.topics_KV.shape[1]
    topics_KV = np.pad(other.topics_KV, ((0, 0), (0, missing)))
    listed = sorted({int(row) for word in words for row in own.vocabulary.encode(word)})
    return word_prior.row_bias(how.word_prior, topics_KV, targets, listed)


def _hide(wide: Aligner, bias_V: np.ndarray) -> np.ndarray:
    """The bias with the rows hidden that only fill up."""
    fill = len(wide.vocabulary) - len(bias_V)
    return np.pad(bias_V, (0, fill), constant_values=crew.HIDDEN)


def _with_good_prior(own: Aligner, wide: Aligner, how: Recipe, spoken, targets, other, words):
    """The recipe, without a word prior that adds errors to the utterances held back.

    Methods that reach into the encoder have no frames at hand, and keep theirs unchecked.
    """
    corpus, texts = spoken
    held_back = np.flatnonzero(_held_back(how.adapt, len(targets)))
    if not how.word_prior.weight or not len(held_back):
        return how
    plain = dataclasses.replace(how, word_prior=dataclasses.replace(how.word_prior, weight=0.0))
    learnt = [target for i, target in enumerate(targets) if i not in held_back]
    inputs, num_frames = corpus.inputs[held_back], corpus.num_frames_N[held_back]
    truths = [texts[i] for i in held_back]
    errors = []
    for recipe in (plain, how):
        bias = _hide(wide, _row_bias(own, recipe, learnt, other, words))
        heard = _biased(wide, bias).hear(inputs, num_frames).texts
        errors.append(int(wer.per_utterance(wer.Config(), truths, heard)["word_errors"].sum()))
    kept = errors[1] <= errors[0]
    logging.info(
        "word prior %s: %d word errors with it, %d without, on %d utterances held back",
        "kept" if kept else "left out", errors[1], errors[0], len(held_back),
    )  # fmt: skip
    return how if kept else plain


def _held_back(config: Config, count: int) -> np.ndarray:
    """Which of a user's utterances are for validation, bool [count]."""
    order = np.random.default_rng(config.seed).permutation(count)
    return np.isin(np.arange(count), order[: config.num_validation])


def _adapt(
    own: Aligner, how: Recipe, corpus: fit.Corpus, other: replay.Replay, bias_V: np.ndarray
) -> tuple[dict[str, np.ndarray], tuple[float, ...], int]:
    """What is kept of the user, the validation losses by checkpoint, and the checkpoint (0: the base)."""
    spec, arguments = _program(own, how, corpus, other)
    arguments = jax.device_put(arguments)  # once, for both runs

    def learn(valid_S: np.ndarray, num_checkpoints: int) -> fit.Trace:
        settings = _settings(how, spec, arguments[-1], num_checkpoints)
        jobs = _job(how.adapt, valid_S, bias_V)
        return jax.device_get(fit.run(spec, *arguments, jobs, settings))

    valid_S = _held_back(how.adapt, len(corpus.num_frames_N))
    losses, checkpoint = (), how.adapt.checkpoint or spec.config.num_checkpoints
    if valid_S.any():
        losses_C = learn(valid_S, checkpoint).valid_loss_JC[0][: checkpoint + 1]
        losses = tuple(round(float(x), 4) for x in losses_C)
        checkpoint = _stop(how.adapt, losses_C)
    if not checkpoint:
        return {}, losses, checkpoint
    whole = learn(np.zeros_like(valid_S), checkpoint)
    return {name: array[0] for name, array in whole.delta.items()}, losses, checkpoint


def _stop(config: Config, losses_C: np.ndarray) -> int:
    """The checkpoint to keep by what the utterances held back say, 0 for the base."""
    losses_C = np.nan_to_num(losses_C, nan=np.inf)
    if not config.checkpoint:
        return int(np.argmin(losses_C))
    most = most_loss(losses_C[0], config.tolerance)
    return config.checkpoint if losses_C[-1] < most else 0


def _program(
    own: Aligner, how: Recipe, corpus: fit.Corpus, other: replay.Replay
) -> tuple[fit.Spec, tuple[PyTree, Frozen, fit.Corpus, fit.Corpus | None]]:
    """What a run compiles for, and its arguments but for jobs and settings."""
    replayed = other.corpus(corpus)
    size = how.fit.replay_size if replayed else 0
    config = dataclasses.replace(how.fit, replay_size=size, jobs_at_once=1, readings=False)
    spec, params = make_spec(own, how.method, config)
    return spec, (params, own.frozen, corpus, replayed)


def _settings(how: Recipe, spec: fit.Spec, replayed, num_checkpoints: int) -> fit.Settings:
    weight = how.adapt.replay_weight if replayed else 0.0
    numbers = np.array([how.adapt.learning_rate, how.adapt.decay, weight], np.float32)
    last = np.asarray(num_checkpoints * spec.config.steps_per_checkpoint, np.int32)
    return fit.Settings(*map(np.asarray, numbers), stop_step=last)


def _job(config: Config, valid_S: np.ndarray, bias_V: np.ndarray) -> fit.Jobs:
    """A copy that learns from all of the user's utterances but the validated ones."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        keys = jax.random.split(jax.random.key(config.seed), 1)
    return fit.Jobs(
        rows_JS=np.arange(len(valid_S), dtype=np.int32)[None],
        train_JS=(~valid_S).astype(np.float32)[None],
        valid_JS=valid_S.astype(np.float32)[None],
        row_bias_JV=bias_V[None],
        key_J=np.asarray(jax.random.key_data(keys)),
    )
