"""How cost grows: one axis at a time, everything else as the size says.

A case an axis; each row is one point of one line, with the point's place on the axis and what it cost.
`benchmark_curves` draws them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax

from tiny_align_jax import benchmark_decode, benchmark_steps, decode_loop, registry
from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.benchmark_timing import Row, is_accelerator, tree_bytes

CORPORA = (4, 16, 64, 256)  # utterances as multiples of the batch
FACTORS = (1, 2, 4, 8)
PROMPTS = (64, 256, 1024, 2048)  # tokens
STEPS = ("embedlink", "embedlink_ctc")
_LAST = "next_token"  # slowest: only where the axis is the LLM's


def utterances(size: Size, size_name: str) -> list[Row]:
    """Utterances that lie on the device: the step must not notice them."""
    rows = []
    for factor in CORPORA:
        problem = benchmark_steps.make(size, "embedlink_ctc", size.seen_rows, corpus=factor)
        x = factor * problem.shape.batch_size
        row = _step("utterances", "embedlink_ctc", x, problem, size_name, size)
        rows.append(_with(row, corpus_mb=tree_bytes(problem.corpus) / 1e6))
    return rows


def length(size: Size, size_name: str) -> list[Row]:
    """Encoder frames of an utterance."""
    return [
        _step_of(size, size_name, "length", name, shape.num_frames * factor // 2, num_frames=True)
        for name, shape in _shapes(size)
        for factor in FACTORS
    ]


def batch(size: Size, size_name: str) -> list[Row]:
    """Utterances a step."""
    return [
        _step_of(size, size_name, "batch", name, shape.batch_size * factor)
        for name, shape in _shapes(size)
        for factor in FACTORS
    ]


def width(size: Size, size_name: str) -> list[Row]:
    """Width of the LLM's embeddings: the objectives without an LLM see rows of it, `next_token` all of it."""
    rows = []
    for name in (*STEPS, _LAST):
        for factor in (1, 2, 4):
            wide = _widened(size, factor)
            problem = benchmark_steps.make(wide, name, size.seen_rows, _values(name))
            x = wide.llm["hidden_size"]
            rows.append(_step("width", name, x, problem, size_name, wide))
    return rows


def slots(size: Size, size_name: str) -> list[Row]:
    """Tokens that the LLM's key-value cache holds while it answers."""
    family = registry.resolve("llms", "llama")
    dtype = "bfloat16" if is_accelerator() else "float32"
    model = decode_loop.LanguageModel(family, family.config_from_hf(size.llm), dtype)
    params = benchmark_steps.random_llm(family, model.config, dtype)
    num_params = sum(x.size for x in jax.tree.leaves(params))
    rows = []
    for prompt_tokens in PROMPTS:
        shape = dataclasses.replace(size.decode, prompt_tokens=prompt_tokens)
        one = dataclasses.replace(size, decode=shape)
        row = benchmark_decode.generate(one, size_name, model, params, num_params, 1)
        rows.append(_point(row, "slots", "one token, batch 1", row.facts["slots"]))
    return rows


AXES: dict[str, Callable[[Size, str], list[Row]]] = {
    "utterances": utterances,
    "length": length,
    "batch": batch,
    "width": width,
    "slots": slots,
}


def _shapes(size: Size) -> Iterator[tuple[str, benchmark_steps.StepShape]]:
    yield from zip(STEPS, (size.embedlink, size.embedlink_ctc), strict=True)


def _step_of(
    size: Size, size_name: str, axis: str, name: str, x: int, num_frames: bool = False
) -> Row:
    """A step of objective `name` with its batch size, or its number of frames, at `x`."""
    shape = dict(_shapes(size))[name]
    changed = dataclasses.replace(shape, **{"num_frames" if num_frames else "batch_size": x})
    problem = benchmark_steps.make(size, name, size.seen_rows, shape=changed)
    return _step(axis, name, x, problem, size_name, size)


def _step(axis: str, line: str, x: int, problem, size_name: str, size: Size) -> Row:
    table_bytes = 4.0 * size.seen_rows * size.llm["hidden_size"]
    row = benchmark_steps.run(line, size_name, "", problem, table_bytes, profile=False)
    return _point(row, axis, line, x)


def _point(row: Row, axis: str, line: str, x: int) -> Row:
    named = dataclasses.replace(row, case=f"scaling_{axis}", variant=f"{line}, {axis} {x}")
    return _with(named, line=line, x=x)


def _with(row: Row, **facts) -> Row:
    return dataclasses.replace(row, facts=row.facts | facts)


def _values(name: str) -> dict[str, str]:
    dtype = "bfloat16" if is_accelerator() else "float32"
    return {"llm_dtype": dtype} if name == _LAST else {}


def _widened(size: Size, factor: int) -> Size:
    """Every width of the LLM times `factor`; heads keep theirs, so that there are more of them."""
    keys: Sequence[str] = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"
    )  # fmt: skip
    return dataclasses.replace(size, llm={**size.llm, **{k: factor * size.llm[k] for k in keys}})
