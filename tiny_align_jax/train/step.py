"""The only jitted training code: one pure step, and a loop over steps that share a shape.

Frozen trees are arguments, never closed over: a closed-over table would be baked into the program.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from tiny_align_jax.data import augment
from tiny_align_jax.train import packed
from tiny_align_jax.train.partition import merge
from tiny_align_jax.types import Array, Batch, Frozen, PyTree


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint saves.

    Attributes:
        step: steps done, int32.
        trainable: parameters that train, float32; None elsewhere.
        fixed: the other half of the tree.
        opt_state: Optax state of `trainable`.
        average: exponential moving average of `trainable` (the same tree; unused with decay 0).
        key: key data of the run's random numbers; each step folds its number in.
    """

    step: Array
    trainable: PyTree
    fixed: PyTree
    opt_state: PyTree
    average: PyTree
    key: Array


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a step is made of; hashable parts only, so that equal specs share compiled code."""

    projector: nn.Module
    objective: ModuleType
    objective_config: Any
    optimizer: optax.GradientTransformation
    augment: augment.Config
    average_decay: float = 0.0
    llm: Any = None


def init_state(spec: StepSpec, trainable: PyTree, fixed: PyTree, seed: int) -> TrainState:
    """A state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        fixed=fixed,
        # One program, not one a shape: each would be read from disk at every start.
        opt_state=jax.jit(spec.optimizer.init)(trainable),
        average=jax.tree.map(jnp.copy, trainable) if spec.average_decay else None,
        key=jax.random.key_data(jax.random.key(seed)),
    )


def with_constants(
    objective: ModuleType, objective_config: Any, frozen: Frozen, llm: Any = None
) -> Frozen:
    """`frozen` with what the objective needs of it at every step, worked out once."""
    if not hasattr(objective, "prepare"):
        return frozen
    rest = {"llm": llm} if "llm" in objective.NEEDS else {}
    # The function itself, so that runs of one process share what is compiled.
    prepare = jax.jit(objective.prepare, static_argnums=0, static_argnames=tuple(rest))
    constants = prepare(objective_config, frozen, **rest)
    return dataclasses.replace(frozen, constants=constants)


def loss_fn(
    spec: StepSpec, trainable: PyTree, fixed: PyTree, frozen: Frozen, batch: Batch, key: Array
) -> tuple[Array, tuple[Array, dict[str, Array]]]:
    """Mean loss over real rows, and (loss of each row, metrics)."""
    params = merge(trainable, fixed)
    augment_key, dropout_key = jax.random.split(key)
    features, num_frames_B = augment.augment(
        spec.augment, augment_key, batch.features_BTE, batch.num_frames_B
    )
    weight_B = batch.weight_B
    # Rows of weight 0 may hold anything, NaN too, which no product with 0 takes out of a gradient.
    features = jnp.where(weight_B[:, None, None] > 0, features, 0)
    mask_BT = jnp.arange(features.shape[1])[None] < num_frames_B[:, None]
    audio_BAD, audio_mask_BA = spec.projector.apply(
        {"params": params["projector"]},
        features,
        mask_BT,
        train=True,
        rngs={"dropout": dropout_key},
    )
    loss_B, metrics = spec.objective.loss(
        spec.objective_config,
        params["objective"],
        audio_BAD,
        audio_mask_BA,
        batch,
        frozen,
        llm=spec.llm,
    )
    safe_B = jnp.where(weight_B > 0, loss_B, 0.0)
    return (safe_B * weight_B).sum() / jnp.maximum(weight_B.sum(), 1.0), (safe_B, metrics)


def train_step(
    spec: StepSpec,
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    rate: Array | None = None,
    layout: packed.Layout | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of the trainable tree.

    Args:
        spec: what the step is made of.
        state: before.
        frozen: what is read.
        batch: one padded batch.
        rate: factor on the update, None for 1: the learning rate relative to the optimizer's own.
        layout: of a packed state.

    Returns:
        The next state and scalars 'loss', 'grad_norm', the objective's own, and 'loss_B'.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(state.key)), state.step)
    grad_fn = jax.value_and_grad(
        lambda t: loss_fn(spec, t, state.fixed, frozen, batch, key), has_aux=True
    )
    params = layout.unpack(state.trainable) if layout else state.trainable
    (loss, (loss_B, metrics)), grads = grad_fn(params)
    grads = layout.pack_gradients(grads) if layout else grads
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.trainable)
    if rate is not None:
        updates = jax.tree.map(lambda update: rate * update, updates)
    trainable = optax.apply_updates(state.trainable, updates)
    average = state.average
    if spec.average_decay:
        # Early on the average follows faster, or it would remember the initial values.
        decay = jnp.minimum(spec.average_decay, (state.step + 1.0) / (state.step + 10.0))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, trainable)
    new_state = dataclasses.replace(
        state, step=state.step + 1, trainable=trainable, opt_state=opt_state, average=average
    )
    return new_state, {
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        "loss_B": loss_B,
        **metrics,
    }


@functools.lru_cache(maxsize=8)  # runs of one process that differ by seed alone compile once
def make_stream_steps(spec: StepSpec) -> Callable:
    """Jitted (state, frozen, batches stacked on a leading axis) -> (state, metrics stacked)."""

    def steps(state: TrainState, frozen: Frozen, batches: Batch):
        def loop(state, layout):
            def step(state, batch):
                return train_step(spec, state, frozen, batch, layout=layout)

            return jax.lax.scan(step, state, batches)

        return _packed(spec, state, loop)

    return jax.jit(steps, donate_argnums=0)


@functools.lru_cache(maxsize=8)
def make_resident_steps(spec: StepSpec) -> Callable:
    """Jitted steps over a corpus that lies on the device: only row numbers cross over.

    The number of steps is a run-time value, so that a short last group compiles nothing new; metrics
    of steps not run are NaN.
    """

    def steps(
        state: TrainState, frozen: Frozen, corpus: Batch, index_KB, weight_KB, num_steps, max_frames
    ):
        return _resident(
            spec, state, frozen, corpus, index_KB, weight_KB, None, num_steps, max_frames
        )

    return jax.jit(steps, donate_argnums=0, static_argnames="max_frames")


@functools.lru_cache(maxsize=8)
def make_lane_steps(spec: StepSpec) -> Callable:
    """Jitted steps of several runs at once over one corpus on the device.

    States, row numbers, weights and rates (see `train_step`) have a leading axis, a lane a run; all lanes
    take the same number of steps over batches of one padded length.
    """

    def steps(
        states: TrainState,
        frozen: Frozen,
        corpus: Batch,
        index_NKB,
        weight_NKB,
        rate_N,
        num_steps,
        max_frames,
    ):
        def lane(state, index_KB, weight_KB, rate):
            return _resident(
                spec, state, frozen, corpus, index_KB, weight_KB, rate, num_steps, max_frames
            )

        return jax.vmap(lane)(states, index_NKB, weight_NKB, rate_N)

    return jax.jit(steps, donate_argnums=0, static_argnames="max_frames")


def _resident(
    spec: StepSpec,
    state: TrainState,
    frozen: Frozen,
    corpus: Batch,
    index_KB: Array,
    weight_KB: Array,
    rate: Array | None,
    num_steps: Array,
    max_frames: int,
) -> tuple[TrainState, dict[str, Array]]:
    """`num_steps` steps over batches that are gathered from `corpus`; metrics of further ones are NaN."""

    def batch_at(k):
        index_B = index_KB[k]
        return Batch(
            features_BTE=_take_frames(corpus.features_BTE, index_B, max_frames),
            num_frames_B=corpus.num_frames_B[index_B],
            target_ids_BL=corpus.target_ids_BL[index_B],
            num_targets_B=corpus.num_targets_B[index_B],
            weight_B=weight_KB[k],
            index_B=index_B,
        )

    shapes = jax.eval_shape(lambda: train_step(spec, state, frozen, batch_at(0), rate)[1])
    start = jax.tree.map(
        lambda s: jnp.full((index_KB.shape[0], *s.shape), jnp.nan, jnp.float32), shapes
    )

    def loop(state, layout):
        def body(k, carry):
            state, logs = carry
            state, metrics = train_step(spec, state, frozen, batch_at(k), rate, layout)
            return state, jax.tree.map(lambda log, m: log.at[k].set(m), logs, metrics)

        return jax.lax.fori_loop(0, num_steps, body, (state, start))

    return _packed(spec, state, loop)


def _packed(spec: StepSpec, state: TrainState, loop: Callable) -> tuple[TrainState, Any]:
    """`loop(state, layout)` over a packed state, where that is faster."""
    layout = packed.layout(state.trainable, spec.projector.dtype)
    if layout is None:
        return loop(state, None)
    state, logs = loop(layout.pack_state(state), layout)
    return layout.unpack_state(state), logs


def _take_frames(features_NTE: Array, index_B: Array, max_frames: int) -> Array:
    # One gather of the slices wanted: slicing the corpus first would copy it every step.
    width = features_NTE.shape[2]

    def one(index):
        return jax.lax.dynamic_slice(features_NTE, (index, 0, 0), (1, max_frames, width))[0]

    return jax.vmap(one)(index_B)
