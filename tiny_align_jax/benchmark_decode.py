"""Greedy generation from prompts given as embeddings: seconds for one token of every row."""

import jax
import jax.numpy as jnp

from tiny_align_jax import decode_loop, joined, registry
from tiny_align_jax.benchmark_profile import kernels
from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.benchmark_steps import random_llm
from tiny_align_jax.benchmark_timing import Row, is_accelerator, measure, per, tree_bytes
from tiny_align_jax.types import PyTree

NEVER = -2  # a stop id that nothing draws: every answer runs to its end


def decode(size: Size, size_name: str) -> list[Row]:
    """All batch sizes of the size."""
    family = registry.resolve("llms", "llama")
    config = family.config_from_hf(size.llm)
    dtype = jnp.bfloat16 if is_accelerator() else jnp.float32
    model = decode_loop.LanguageModel(family, config, dtype)
    params = joined.for_decoding(random_llm(family, config, dtype))
    num_params = sum(x.size for x in jax.tree.leaves(params))
    return [
        generate(size, size_name, model, params, num_params, batch)
        for batch in size.decode.batch_sizes
    ]


def generate(size: Size, size_name: str, model, params: PyTree, num_params: int, batch: int) -> Row:
    """Seconds a token; matrices of `params`, `num_params` numbers in all, may be quantised."""
    shape = size.decode
    sampling = decode_loop.Sampling(shape.new_tokens, 0.0, 0, 1.0)
    stops = jnp.array([NEVER], jnp.int32)
    tail = 0.02 * jax.random.normal(
        jax.random.key(0), (batch, shape.prompt_tokens, model.config.dim)
    )
    inputs = (
        None, tail, jnp.ones(tail.shape[:2], bool), jnp.zeros(batch, bool), jnp.arange(batch), 0, stops
    )  # fmt: skip

    def read():
        return decode_loop.read_tail(model, sampling, params, *inputs)

    def both():
        return decode_loop.run(model, sampling, params, read(), stops, shape.new_tokens)

    # The first token comes with the prompt; the loop draws the rest.
    prompt, whole = measure(read), measure(both)
    drawn = shape.new_tokens - 1
    seconds = (whole["seconds"] - prompt["seconds"]) / drawn
    state = jax.eval_shape(read)
    cache_bytes = tree_bytes({k: state.cache[k] for k in ("k", "v")})
    slots = shape.prompt_tokens + shape.new_tokens
    held = shape.prompt_tokens + shape.new_tokens / 2  # slots filled half way through the answer
    return Row(
        case="decode",
        size=size_name,
        variant=f"batch {batch}",
        seconds=seconds,
        low_s=per(whole, drawn)["low_s"] - prompt["seconds"] / drawn,
        high_s=per(whole, drawn)["high_s"] - prompt["seconds"] / drawn,
        repeats=whole["repeats"],
        flops=2.0 * num_params * batch,
        num_bytes=tree_bytes(params) + cache_bytes * held / slots,
        dtype=jnp.dtype(model.dtype).name,
        facts={
            "tokens_per_s": batch / seconds,
            "prompt_ms": 1e3 * prompt["seconds"],
            "tokens_per_s_with_prompt": batch * shape.new_tokens / whole["seconds"],
            "slots": slots,
            "profile": kernels(both),
        },
    )
