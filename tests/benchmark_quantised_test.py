"""Decoding in quantised forms: every form stands for the same numbers, and is measured."""

import jax
import jax.numpy as jnp

from tiny_align_jax import benchmark_quantised, benchmark_sizes, registry
from tiny_align_jax.benchmark_timing import tree_bytes
from tiny_align_jax.quantize.config import Config
from tiny_align_jax.weights import loading


def test_blocks_of_a_file_stand_for_the_same_numbers_in_their_own_bytes():
    family = registry.resolve("llms", "llama")
    hf = {**benchmark_sizes.find("tiny").llm, "hidden_size": 256, "intermediate_size": 512}
    config = family.config_from_hf(hf)
    plain = loading.held_shapes_of("llms", family, config, jnp.bfloat16)
    held = loading.held_shapes_of("llms", family, config, jnp.bfloat16, Config("int8"))
    ((matrices, table),) = benchmark_quantised.BLOCKS.values()
    blocks = benchmark_quantised._of_blocks(held, matrices, table, jnp.bfloat16)
    count = benchmark_quantised.count_params
    assert count(plain) == count(held) == count(blocks)
    down = blocks["layers"]["mlp"]["down"]["weight"]
    # Q4_K in memory: half a byte a code, scale and minimum of a byte a group of 32, two more bytes each a block of 256.
    assert tree_bytes(down) == 256 * 512 * down.codes.shape[0] * (1 / 2 + 2 / 32 + 4 / 256)


def test_a_form_is_measured():
    size = benchmark_sizes.find("tiny")
    names = benchmark_quantised.forms(size)
    assert {"float", "int8", "int4"} <= {*names} and not {*benchmark_quantised.BLOCKS} & {*names}
    row = benchmark_quantised.measure_form(size, "tiny", "int4")
    params = benchmark_quantised.random_params(
        "int4", registry.resolve("llms", "llama"), _config(size), jnp.float32
    )
    assert row.variant == "int4" and row.seconds > 0
    assert row.facts["weight_bytes"] == sum(x.nbytes for x in jax.tree.leaves(params))


def _config(size):
    return registry.resolve("llms", "llama").config_from_hf(size.llm)
