"""Generation with quantised matrices at batch 1, beside the same in floating point."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import decode_loop, registry
from tiny_align_jax.benchmark_decode import NEVER, generate
from tiny_align_jax.benchmark_sizes import DecodeShape, Size
from tiny_align_jax.benchmark_timing import Row, is_accelerator, tree_bytes
from tiny_align_jax.quantize import grouped
from tiny_align_jax.quantize.config import Config
from tiny_align_jax.quantize.grouped import Grouped
from tiny_align_jax.types import PyTree
from tiny_align_jax.weights import loading

HELD = {
    "float": Config(),
    "int8": Config("int8"),
    "int4": Config("int4"),
    "int4, symmetric": Config("int4", minimum=False),
    "int4, groups of 128": Config("int4", group_size=128),
    "int4, table too": Config("int4", table="int4"),
}


def decode_quantised(size: Size, size_name: str) -> list[Row]:
    """A row for each of `HELD`; weights are random, speed does not depend on them."""
    family = registry.resolve("llms", "llama")
    config = family.config_from_hf(size.llm)
    dtype = jnp.bfloat16 if is_accelerator() else jnp.float32
    model = decode_loop.LanguageModel(family, config, dtype)
    rows: list[Row] = []
    for name, held in HELD.items():
        shapes = loading.held_shapes_of("llms", family, config, dtype, held)
        forms = {name: shapes}
        if not held.is_float and is_accelerator():
            forms[f"{name}, words"] = grouped.words(shapes)
        for variant, form in forms.items():
            params = random_held(form)
            row = generate(size, size_name, model, params, count_params(params), 1)
            faster = rows[0].seconds / row.seconds if rows else 1.0
            facts = row.facts | {"weight_bytes": tree_bytes(params), "times_faster": faster}
            named = dataclasses.replace(row, case="decode_quantised", variant=variant, facts=facts)
            rows.append(named)
    return rows


def tokens_per_s(
    model: decode_loop.LanguageModel, params: PyTree, shape: DecodeShape
) -> dict[str, float]:
    """Greedy tokens at batch 1 a second ('wall'), and a second of processor time ('core').

    Processor time hardly depends on what else the machine does; beside an accelerator it says little.
    """
    stops = jnp.array([NEVER], jnp.int32)
    tail = 0.02 * jax.random.normal(jax.random.key(0), (1, shape.prompt_tokens, model.config.dim))
    inputs = (
        None,
        tail,
        jnp.ones(tail.shape[:2], bool),
        jnp.zeros(1, bool),
        jnp.arange(1),
        0,
        stops,
    )
    sampling = decode_loop.Sampling(shape.new_tokens, 0.0, 0, 1.0)
    times = []
    for _ in range(3):  # the first compiles
        state = decode_loop.read_tail(model, sampling, params, *inputs)
        jax.block_until_ready(state)
        began = time.perf_counter(), time.process_time()
        run = decode_loop.run(model, sampling, params, state, stops, shape.new_tokens)
        jax.block_until_ready(run)
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, core = (min(column) for column in zip(*times[1:], strict=True))
    drawn = shape.new_tokens - 1  # the first token comes with the prompt
    return {"wall": drawn / wall, "core": drawn / core}


def count_params(params: PyTree) -> int:
    """Numbers that the arrays of a tree stand for."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Grouped))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def random_held(shapes: PyTree) -> PyTree:
    """Random parameters of these shapes, made on the device."""
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, _random(tuple((x.shape, x.dtype) for x in leaves)))


@functools.partial(jax.jit, static_argnames=("shapes",))
def _random(shapes: tuple[tuple[tuple[int, ...], Any], ...]) -> list[jax.Array]:
    """Small normal numbers, or random bits."""
    made = []
    for i, (shape, dtype) in enumerate(shapes):
        key = jax.random.key(i)
        if jnp.issubdtype(dtype, jnp.floating):
            made.append((0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype))
        else:
            bits = jnp.uint8 if dtype == jnp.int8 else dtype
            made.append(jax.random.bits(key, shape, bits).astype(dtype))
    return made
