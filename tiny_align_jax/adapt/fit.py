"""Adaptation of one base to many users in one jitted, vmapped run; a single user is a run of one.

A job is one user's copy: which rows of a shared corpus it trains on, which it is validated on, and a key.
Its way is cut into checkpoints; at each the job is validated and reads all of its rows, so early
stopping, learning curves and scores all come out of one run. The base, the table and the
replayed utterances of other speakers are arguments that all jobs share.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from tiny_align_jax import checks, programs
from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.aligner import Ear
from tiny_align_jax.data import augment as augment_lib
from tiny_align_jax.types import Array, Batch, Frozen, PyTree

TOP_ROWS = 16  # that a beam search may look at
NOTHING = -1  # in readings: an audio token that carries no text
_B1, _B2 = 0.9, 0.98


@flax.struct.dataclass
class Corpus:
    """Utterances on the device.

    Attributes:
        inputs: [N, T, E] cached encoder frames, or [N, S] encoder inputs for methods that reach into it.
        num_frames_N: valid frames, int32.
        num_samples_N: samples of audio, int32; only read beside encoder inputs.
        target_ids_NL: table rows of the transcripts, int32.
        num_targets_N: valid targets, int32.
    """

    inputs: Array
    num_frames_N: Array
    num_samples_N: Array
    target_ids_NL: Array
    num_targets_N: Array


@flax.struct.dataclass
class Jobs:
    """One row a job.

    Attributes:
        rows_JS: the user's rows of the corpus, int32; every job has the same number.
        train_JS: 1.0 where the row is trained on.
        valid_JS: 1.0 where it is validated on.
        row_bias_JV: added to every table row's logit when reading: a word prior, or LOG_ZERO to hide
            a row from this user.
        key_J: key data.
    """

    rows_JS: Array
    train_JS: Array
    valid_JS: Array
    row_bias_JV: Array
    key_J: Array


@flax.struct.dataclass
class Settings:
    """Numbers that change without compiling anew.

    Attributes:
        learning_rate: of Adam, after a warm-up over the first tenth; falls linearly to a tenth.
        decay: decoupled weight decay of the delta, towards the base.
        replay_weight: share of the loss that the replayed utterances get.
        rates: factor on the learning rate of every array of the delta; None for 1 everywhere.
        stop_step: no step is made from this one on; None for all of them.
    """

    learning_rate: Array
    decay: Array
    replay_weight: Array
    rates: Any = None
    stop_step: Array | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run compiles for.

    Attributes:
        steps_per_checkpoint: updates between two checkpoints.
        num_checkpoints: checkpoints after the start.
        batch_size: the user's utterances a step.
        replay_size: utterances of other speakers a step; 0 for none.
        augment: on the frames, as in training.
        jobs_at_once: jobs that share a step; more fill a large accelerator, fewer save memory.
        keep_deltas: return the delta at every checkpoint, not only the last.
        readings: read all rows at every checkpoint.
    """

    steps_per_checkpoint: int = 10
    num_checkpoints: int = 5
    batch_size: int = 8
    replay_size: int = 8
    augment: augment_lib.Config = dataclasses.field(default_factory=augment_lib.Config)
    jobs_at_once: int = 1
    keep_deltas: bool = False
    readings: bool = True

    def __post_init__(self):
        counts = ("steps_per_checkpoint", "num_checkpoints", "batch_size", "jobs_at_once")
        problems = [*checks.below(self, 1, *counts), *checks.below(self, 0, "replay_size")]
        checks.refuse("fit", problems)

    @property
    def num_steps(self) -> int:
        """Updates in all."""
        return self.steps_per_checkpoint * self.num_checkpoints


@dataclasses.dataclass(frozen=True)
class Spec:
    """The parts of a run that programs are keyed on.

    Attributes:
        ear: projector and objective.
        method: what a user's copy differs in.
        config: sizes of the run.
        encoder: the encoder, for methods that reach into it, else None.
        layers: its hidden states that are the projector's frames.
    """

    ear: Ear
    method: delta_lib.Method
    config: Config
    encoder: nn.Module | None = None
    layers: tuple[int, ...] = (-1,)


@programs.result_type
@flax.struct.dataclass
class Trace:
    """What became of every job, by checkpoint C (the first is the base).

    Attributes:
        valid_loss_JC: mean loss over the validation rows; NaN where a job has none.
        readings_JCSA: table row at each audio token, NOTHING where none, int16; None without `readings`.
        delta: of every job, [J, ...] after the last step or [J, C, ...] with `keep_deltas`.
    """

    valid_loss_JC: Array
    readings_JCSA: Array | None
    delta: Any


@programs.kept(num_static=1)
def run(
    spec: Spec,
    params: PyTree,
    frozen: Frozen,
    corpus: Corpus,
    replay: Corpus | None,
    jobs: Jobs,
    settings: Settings,
) -> Trace:
    """Adapts all jobs.

    Args:
        spec: modules and sizes.
        params: the base's tree, with 'encoder' where the method reaches into it.
        frozen: table rows.
        corpus: of all users.
        replay: other speakers' utterances; None only with `replay_size` 0.
        jobs: what to adapt.
        settings: learning rate and the like.
    """
    one = functools.partial(_one, spec, params, frozen, corpus, replay, settings)
    count, together = len(jobs.rows_JS), min(spec.config.jobs_at_once, len(jobs.rows_JS))
    if together == 1:  # vmap of one would be traced twice: half a second of a user's wait
        return jax.lax.map(one, jobs)
    # Whole groups only: a group of another size would be another program.
    whole = filled_up(jobs, together)
    groups = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), whole)
    traces = jax.lax.map(jax.vmap(one), groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], traces)


def filled_up(jobs: Jobs, multiple: int) -> Jobs:
    """As many jobs as a multiple of so many, the last one again where there are too few."""
    count = len(jobs.rows_JS)
    index = jnp.minimum(jnp.arange(-(-count // multiple) * multiple), count - 1)
    return jax.tree.map(lambda x: jnp.asarray(x)[index], jobs)


@flax.struct.dataclass
class Heard:
    """What copies hear, by job J and row S of the user.

    Attributes:
        readings_JSA: greedy, as in `Trace`.
        top_rows_JSAK: the K likeliest rows at each audio token, for a beam search.
        top_log_probs_JSAK: their log-probabilities.
        blank_JSA: log-probability of the blank.
        num_tokens_JS: valid audio tokens.
    """

    readings_JSA: Array
    top_rows_JSAK: Array | None
    top_log_probs_JSAK: Array | None
    blank_JSA: Array | None
    num_tokens_JS: Array


@functools.partial(jax.jit, static_argnums=0)
def hear(
    spec: Spec, params: PyTree, frozen: Frozen, corpus: Corpus, jobs: Jobs, delta_J: delta_lib.Delta
) -> Heard:
    """Reads rows of the corpus with given deltas, one job at a time."""

    def one(inputs):
        job, delta = inputs
        user = delta_lib.apply(params, delta)
        own = jax.tree.map(lambda x: x[job.rows_JS], corpus)
        audio_SAD, mask_SA = _project(spec, user, own, delta)
        objective, config = spec.ear.objective, spec.ear.objective_config
        prior = {**user["objective"], "row_bias": job.row_bias_JV}
        rows = _read(spec, prior, frozen, audio_SAD, mask_SA)
        if not hasattr(objective, "log_probs"):
            return Heard(rows, None, None, None, mask_SA.sum(-1))
        log_probs = objective.log_probs(config, prior, audio_SAD, frozen)
        # Row 0 ends a text; it is never spoken.
        spoken = log_probs[..., 1:-1]
        best, index = jax.lax.top_k(spoken, min(TOP_ROWS, spoken.shape[-1]))
        top = (index + 1).astype(jnp.int16)
        return Heard(rows, top, best, log_probs[..., -1], mask_SA.sum(-1))

    return jax.lax.map(one, (jobs, delta_J))


def _one(spec, params, frozen, corpus, replay, settings, job: Jobs) -> Trace:
    """One job; fields of `job` lack their leading axis."""
    config = spec.config
    key = jax.random.wrap_key_data(jnp.asarray(job.key_J))
    width = corpus.inputs.shape[-1] if spec.encoder is None else _width(spec)
    start = delta_lib.init(spec.method, params, width, jax.random.fold_in(key, 0))
    own = jax.tree.map(lambda x: x[job.rows_JS], corpus)
    optimizer = optax.scale_by_adam(_B1, _B2)

    def step(number, carry):
        delta, moments = carry
        step_key = jax.random.fold_in(key, number + 1)
        loss = functools.partial(_loss, spec, params, frozen, own, replay, job, settings, step_key)
        updates, moments = optimizer.update(jax.grad(loss)(delta), moments, delta)
        return _update(config, settings, number, delta, updates), moments

    def from_checkpoint(carry, number):
        # Looks first and walks on then, so that looking is compiled once; nothing follows the last look.
        seen = _look(spec, params, frozen, own, job, carry[0])
        begin = number * config.steps_per_checkpoint
        last = config.num_steps if settings.stop_step is None else settings.stop_step
        end = jnp.minimum(begin + config.steps_per_checkpoint, jnp.minimum(last, config.num_steps))
        return jax.lax.fori_loop(begin, end, step, carry), seen

    (last, _), trace = jax.lax.scan(
        from_checkpoint, (start, optimizer.init(start)), jnp.arange(config.num_checkpoints + 1)
    )
    return trace if config.keep_deltas else dataclasses.replace(trace, delta=last)


def _update(config: Config, settings: Settings, number, delta, updates):
    share = number / config.num_steps
    warm = jnp.minimum(1.0, (number + 1) / max(1.0, 0.1 * config.num_steps))
    rate = settings.learning_rate * warm * (1 - 0.9 * share)
    rates = settings.rates or {name: 1.0 for name in delta}
    return {
        name: value - rate * rates[name] * (updates[name] + settings.decay * value)
        for name, value in delta.items()
    }


def _loss(spec, params, frozen, own, replay, job, settings, key, delta):
    """Mean loss of the user's rows and of the replayed ones, weighed."""
    config = spec.config
    own_key, replay_key, noise_key = jax.random.split(key, 3)
    # Rows without replacement, those that train first; weight 0 where there are fewer than wanted.
    size = min(config.batch_size, job.train_JS.shape[0])
    order = jax.random.gumbel(own_key, job.train_JS.shape) + 1e9 * (job.train_JS > 0)
    _, index = jax.lax.top_k(order, size)
    batch, weight = jax.tree.map(lambda x: x[index], own), job.train_JS[index]
    weight = weight / jnp.maximum(weight.sum(), 1.0)
    if config.replay_size:
        drawn = jax.random.randint(replay_key, (config.replay_size,), 0, len(replay.num_frames_N))
        other = jax.tree.map(lambda x: x[drawn], replay)
        batch = jax.tree.map(_join, batch, other)
        even = jnp.full((config.replay_size,), 1 / config.replay_size)
        weight = jnp.concatenate(
            [(1 - settings.replay_weight) * weight, settings.replay_weight * even]
        )
    user = delta_lib.apply(params, delta)
    audio_BAD, audio_mask_BA = _project(spec, user, batch, delta, noise_key)
    loss_B = _losses(spec, user, frozen, batch, weight, audio_BAD, audio_mask_BA)
    return jnp.sum(jnp.where(weight > 0, loss_B, 0.0) * weight)


def _join(a: Array, b: Array) -> Array:
    """Rows of b below those of a; targets of different lengths are padded."""
    if a.ndim == 2 and a.shape[1] != b.shape[1]:
        width = max(a.shape[1], b.shape[1])
        a, b = (jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (a, b))
    return jnp.concatenate([a, b])


def _losses(spec, user, frozen, batch: Corpus, weight_B, audio_BAD, audio_mask_BA):
    """The objective's loss of every row."""
    rows = Batch(
        features_BTE=None,  # type: ignore[arg-type]  # objectives read none
        num_frames_B=batch.num_frames_N,
        target_ids_BL=batch.target_ids_NL,
        num_targets_B=batch.num_targets_N,
        weight_B=(weight_B > 0).astype(jnp.float32),
        index_B=batch.num_frames_N,
    )
    config, params = spec.ear.objective_config, user["objective"]
    return spec.ear.objective.loss(config, params, audio_BAD, audio_mask_BA, rows, frozen)[0]


def _look(spec, params, frozen, own: Corpus, job: Jobs, delta) -> Trace:
    """Validation loss and, if asked for, readings of all of a user's rows."""
    user = delta_lib.apply(params, delta)
    audio_SAD, audio_mask_SA = _project(spec, user, own, delta)
    loss_S = _losses(spec, user, frozen, own, job.valid_JS, audio_SAD, audio_mask_SA)
    loss = jnp.sum(jnp.where(job.valid_JS > 0, loss_S, 0.0)) / job.valid_JS.sum()
    kept = delta if spec.config.keep_deltas else None
    if not spec.config.readings:
        return Trace(loss, None, kept)
    prior = {**user["objective"], "row_bias": job.row_bias_JV}
    return Trace(loss, _read(spec, prior, frozen, audio_SAD, audio_mask_SA), kept)


def _read(spec, objective, frozen, audio_SAD, audio_mask_SA) -> Array:
    """Greedy reading, as in `Trace`."""
    reading = spec.ear.objective.read(
        spec.ear.objective_config, objective, audio_SAD, audio_mask_SA, frozen
    )
    return jnp.where(reading.keep_BA, reading.rows_BA, NOTHING).astype(jnp.int16)


def _project(spec, user, batch: Corpus, delta, key=None) -> Any:
    """Audio tokens of a batch and their mask."""
    if spec.encoder is None:
        features = batch.inputs
    else:
        states = spec.encoder.apply(
            {"params": user["encoder"]}, batch.inputs, batch.num_samples_N, spec.layers
        )
        features = jnp.concatenate(states, axis=-1)
    features = delta_lib.change_frames(delta, features.astype(jnp.float32))
    num_frames = batch.num_frames_N
    rngs = {}
    if key is not None:
        augment_key, dropout_key = jax.random.split(key)
        features, num_frames = augment_lib.augment(
            spec.config.augment, augment_key, features, num_frames
        )
        rngs = {"dropout": dropout_key}
    mask_BT = jnp.arange(features.shape[1])[None] < num_frames[:, None]
    return spec.ear.projector.apply(
        {"params": user["projector"]}, features, mask_BT, train=key is not None, rngs=rngs
    )


def _width(spec: Spec) -> int:
    return spec.encoder.config.dim * len(spec.layers)  # type: ignore[union-attr]
