"""Generation with quantised matrices at batch 1, beside the same in floating point."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import decode_loop, joined, quantise_qwix, registry
from tiny_align_jax.benchmark_decode import NEVER, generate
from tiny_align_jax.benchmark_sizes import DecodeShape, Size
from tiny_align_jax.benchmark_timing import Row, is_accelerator, tree_bytes
from tiny_align_jax.quantize import gguf_blocks, grouped
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
# A file of blocks: its matrices, its table. Q8_0, Q4_1 and Q4_0 lie in memory as int8, int4 and 'int4, symmetric' do.
BLOCKS = {"GGUF Q4_K, table Q6_K": (gguf_blocks.Kind.Q4_K, gguf_blocks.Kind.Q6_K)}
_BLOCK = 256  # inputs of a block of these kinds
QWIX = {"int8 by qwix": "int8", "int4 by qwix": "int4"}


def forms(size: Size) -> tuple[str, ...]:
    """Names of all forms that can be measured here; ', bytes' is without `grouped.words`."""
    blocks = BLOCKS if size.llm["hidden_size"] % _BLOCK == 0 else {}
    bytewise = ("int8, bytes", "int4, bytes") if is_accelerator() else ()
    return (*HELD, *blocks, *bytewise, *(QWIX if quantise_qwix.is_installed() else ()))


def decode_quantised(size: Size, size_name: str) -> list[Row]:
    """A row for each form; weights are random, speed does not depend on them."""
    rows: list[Row] = []
    for name in forms(size):
        row = measure_form(size, size_name, name)
        faster = rows[0].seconds / row.seconds if rows else 1.0
        rows.append(dataclasses.replace(row, facts=row.facts | {"times_faster": faster}))
    return rows


def measure_form(size: Size, size_name: str, name: str) -> Row:
    """Generation at batch 1 with matrices in one of `forms`."""
    family = registry.resolve("llms", "llama")
    config = family.config_from_hf(size.llm)
    dtype = jnp.bfloat16 if is_accelerator() else jnp.float32
    params = random_params(name, family, config, dtype)
    model = decode_loop.LanguageModel(family, config, dtype)
    row = generate(size, size_name, model, params, count_params(params), 1)
    facts = row.facts | {"weight_bytes": tree_bytes(params)}
    return dataclasses.replace(row, case="decode_quantised", variant=name, facts=facts)


def random_params(name: str, family: Any, config: Any, dtype: Any) -> PyTree:
    """Random parameters in a form, as they are held for decoding."""
    if name in QWIX:
        shapes = loading.held_shapes_of("llms", family, config, dtype)
        return quantise_qwix.quantise(random_held(shapes), QWIX[name])
    plain, _, bytewise = name.partition(", bytes")
    blocks, held = BLOCKS.get(name), HELD.get(plain, HELD["int8"])
    shapes = loading.held_shapes_of("llms", family, config, dtype, held)
    shapes = _of_blocks(shapes, *blocks, dtype) if blocks else shapes
    if bytewise or not is_accelerator():
        return random_held(shapes)
    return joined.for_decoding(random_held(grouped.words(shapes)))


def _of_blocks(shapes: PyTree, matrices: Any, table: Any, dtype: Any) -> PyTree:
    """Shapes of a quantised model with other layouts: those of GGUF's kinds."""

    def hold(path: Any, node: Any) -> Any:
        if not isinstance(node, Grouped):
            return node
        layout = gguf_blocks.LAYOUTS[table if path[0].key == "embedder" else matrices]
        leaves = layout.leaves(node.shape)
        made = {key: jax.ShapeDtypeStruct(*leaf) for key, leaf in leaves.items()}
        return grouped.from_leaves(made, layout, dtype)

    return jax.tree_util.tree_map_with_path(hold, shapes, is_leaf=lambda x: isinstance(x, Grouped))


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
    is_matrix = lambda node: isinstance(node, Grouped | quantise_qwix.QwixMatrix)  # noqa: E731
    leaves = jax.tree.leaves(params, is_leaf=is_matrix)
    return sum(math.prod(getattr(leaf, "array", leaf).shape) for leaf in leaves)


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
