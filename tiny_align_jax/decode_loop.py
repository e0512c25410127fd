"""The jitted part of generation: read a prompt into the KV cache, then draw tokens.

Everything that is large (parameters, cache) is an argument; what a program depends on is static.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from tiny_align_jax.types import Array, PyTree

NO_TOKEN = -1  # fills unused places of an answer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A frozen LLM without its parameters: hashable, so jit can key on it.

    Attributes:
        family: plug-in module of `llms`.
        config: that family's Config.
        dtype: activations and cache.
    """

    family: ModuleType
    config: Any
    dtype: Any = jnp.float32

    def apply(self, params: PyTree, *args, **kwargs) -> tuple[Array, PyTree]:
        """The family's forward pass, see docs/architecture.md."""
        module = self.family.LLM(self.config, self.dtype)
        return module.apply({"params": params}, *args, **kwargs)

    def embed(self, params: PyTree, ids: Array) -> Array:
        """Input embeddings of `ids` as the first layer sees them."""
        return self.family.embed(self.config, params, ids)

    def layer_outputs(self, params: PyTree, *args) -> Array:
        """What every layer gives for the arguments of `apply`, without a cache: [layers, B, N, D]."""
        module = self.family.LLM(self.config, self.dtype)
        is_block = lambda part, method: isinstance(part, module.block)  # noqa: E731
        _, kept = module.apply(
            {"params": params}, *args, capture_intermediates=is_block, mutable=["intermediates"]
        )
        (((outputs_LBND, _), _),) = kept["intermediates"]["layers"]["__call__"]
        return outputs_LBND

    def init_cache(self, batch_size: int, max_length: int) -> PyTree:
        """An empty KV cache."""
        return self.family.init_cache(self.config, batch_size, max_length, self.dtype)


@flax.struct.dataclass
class Prefix:
    """Keys and values of the first part of a prompt, one row.

    Attributes:
        cache: the family's KV cache.
        num_tokens: how long that part is.
    """

    cache: PyTree
    num_tokens: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The part of the config that a compiled program depends on."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float


@flax.struct.dataclass
class State:
    """What the loop carries; `step` tokens of every row's answer are known."""

    cache: PyTree
    ids_BM: Array
    position_B: Array
    finished_B: Array
    log_prob_B: Array
    key_B: Array
    step: Array


@functools.partial(jax.jit, static_argnames=("model",))
def read_prefix(model: LanguageModel, params: PyTree, ids_P: Array) -> PyTree:
    """KV cache of one row that holds the tokens `ids_P`."""
    num_tokens = ids_P.shape[0]
    # Two slots at least: `widen` takes an axis of length one for the batch.
    cache = model.init_cache(1, max(num_tokens, 2))
    positions, mask = jnp.arange(num_tokens)[None], jnp.ones((1, num_tokens), bool)
    last = jnp.full((1,), num_tokens - 1)
    return model.apply(params, model.embed(params, ids_P)[None], positions, mask, cache, last)[1]


@functools.partial(jax.jit, static_argnames=("model", "sampling"))
def read_tail(
    model: LanguageModel,
    sampling: Sampling,
    params: PyTree,
    prefix: Prefix | None,
    tail_BRD: Array,
    mask_BR: Array,
    is_fill_B: Array,
    row_B: Array,
    seed: Array,
    stop_ids_K: Array,
) -> State:
    """Reads prompts behind a shared prefix and draws every row's first token.

    Args:
        model, sampling, params: what generates, and how.
        prefix: shared first part, None if there is none.
        tail_BRD: embeddings of what follows it, padded on the left.
        mask_BR: True for real tokens; the last one of every row is real.
        is_fill_B: True for rows that only fill the batch.
        row_B: number of each row in the whole call; decides its random draws.
        seed: of the sampling.
        stop_ids_K: ids that end an answer.
    """
    batch, length, _ = tail_BRD.shape
    past = 0 if prefix is None else prefix.num_tokens
    cache = model.init_cache(batch, past + length + sampling.max_new_tokens)
    if prefix is not None:
        cache = widen(prefix.cache, cache)
    positions_BR = past + jnp.maximum(jnp.cumsum(mask_BR, axis=1) - 1, 0)
    last_B = jnp.full((batch,), length - 1)
    logits_BV, cache = model.apply(params, tail_BRD, positions_BR, mask_BR, cache, last_B)
    state = State(
        cache=cache,
        ids_BM=jnp.full((batch, sampling.max_new_tokens), NO_TOKEN, jnp.int32),
        position_B=past + mask_BR.sum(axis=1),
        finished_B=jnp.asarray(is_fill_B),
        log_prob_B=jnp.zeros((batch,), jnp.float32),
        key_B=jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), row_B),
        step=jnp.zeros((), jnp.int32),
    )
    return _take(sampling, state, logits_BV, stop_ids_K)


@functools.partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("state",))
def run(
    model: LanguageModel,
    sampling: Sampling,
    params: PyTree,
    state: State,
    stop_ids_K: Array,
    until: Array,
) -> State:
    """Draws tokens until every row has stopped or `until` tokens are there."""

    def unfinished(state: State) -> Array:
        return (state.step < until) & ~state.finished_B.all()

    def step(state: State) -> State:
        ids_B = jnp.maximum(state.ids_BM[:, state.step - 1], 0)  # finished rows hold NO_TOKEN
        logits_BNV, cache = model.apply(
            params,
            model.embed(params, ids_B)[:, None],
            state.position_B[:, None],
            ~state.finished_B[:, None],
            state.cache,
        )
        state = dataclasses.replace(state, cache=cache, position_B=state.position_B + 1)
        return _take(sampling, state, logits_BNV[:, -1], stop_ids_K)

    return jax.lax.while_loop(unfinished, step, state)


def _take(sampling: Sampling, state: State, logits_BV: Array, stop_ids_K: Array) -> State:
    """Draws one token a row and books it; finished rows draw nothing."""
    logits_BV = logits_BV.astype(jnp.float32)
    drawn_B = draw(sampling, logits_BV, state.key_B, state.step)
    chosen_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), drawn_B[:, None], axis=1)[:, 0]
    ids_B = jnp.where(state.finished_B, NO_TOKEN, drawn_B)
    return dataclasses.replace(
        state,
        ids_BM=jnp.asarray(state.ids_BM).at[:, state.step].set(ids_B),
        log_prob_B=state.log_prob_B + jnp.where(state.finished_B, 0.0, chosen_B),
        finished_B=state.finished_B | (drawn_B[:, None] == stop_ids_K[None]).any(axis=1),
        step=state.step + 1,
    )


def draw(sampling: Sampling, logits_BV: Array, key_B: Array, step: Array) -> Array:
    """The next id of every row, int32[B]: the likeliest at temperature 0, else drawn by its own key."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = truncate(logits_BV / sampling.temperature, sampling.top_k, sampling.top_p)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(key_B, step)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def truncate(logits_BV: Array, top_k: int, top_p: float) -> Array:
    """Logits with all but the k likeliest, then all but the nucleus of mass p, at minus infinity.

    Source: Holtzman et al. 2020, nucleus sampling; the token that crosses p is kept.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        kth = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
    if top_p < 1:
        descending = -jnp.sort(-logits_BV, axis=-1)
        probs = jax.nn.softmax(descending, axis=-1)
        in_nucleus = jnp.cumsum(probs, axis=-1) - probs < top_p
        smallest = jnp.min(jnp.where(in_nucleus, descending, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < smallest, -jnp.inf, logits_BV)
    return logits_BV


def widen(one_row: PyTree, empty: PyTree) -> PyTree:
    """A one-row cache copied to every row of a longer, empty one.

    Axes need no names: an axis of length one is repeated, a shorter one fills the first slots.
    """

    def copy(small: Array, big: Array) -> Array:
        shape = tuple(b if s == 1 else s for s, b in zip(small.shape, big.shape, strict=True))
        spread = jnp.broadcast_to(small, shape).astype(big.dtype)
        return jax.lax.dynamic_update_slice(big, spread, (0,) * big.ndim)

    return jax.tree.map(copy, one_row, empty)
