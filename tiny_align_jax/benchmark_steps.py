"""Training steps as the loop runs them: a corpus on the device, several steps a dispatch."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import joined, registry
from tiny_align_jax.benchmark_profile import kernels
from tiny_align_jax.benchmark_sizes import Size, StepShape
from tiny_align_jax.benchmark_timing import (
    Row,
    count_flops,
    is_accelerator,
    measure,
    per,
    tree_bytes,
)
from tiny_align_jax.data import augment
from tiny_align_jax.train import optimizer
from tiny_align_jax.train import step as step_lib
from tiny_align_jax.train.partition import path_name
from tiny_align_jax.types import Batch, Frozen, PyTree

_CORPUS = 4  # utterances on the device, as multiples of the batch
_TABLE_RMS = 0.02
_NUM_STEPS = 1000  # of the learning rate's schedule


@dataclasses.dataclass(frozen=True)
class Problem:
    """A step with everything it runs on."""

    spec: step_lib.StepSpec
    state: step_lib.TrainState
    frozen: Frozen
    corpus: Batch
    shape: StepShape

    def batch(self) -> Batch:
        """The corpus's first batch."""
        return jax.tree.map(lambda x: x[: self.shape.batch_size], self.corpus)


def make(
    size: Size,
    objective: str,
    num_rows: int,
    objective_values: Mapping[str, Any] | None = None,
    shape: StepShape | None = None,
    corpus: int = _CORPUS,
) -> Problem:
    """A step of random weights and frames.

    Args:
        size: of everything.
        objective: plug-in name.
        num_rows: rows of the table.
        objective_values: keys of the objective's Config.
        shape: of the step; None for the size's own.
        corpus: utterances on the device, as multiples of the batch.
    """
    module = registry.resolve("objectives", objective)
    if shape is None:
        shape = size.embedlink_ctc if objective == "embedlink_ctc" else size.embedlink
    bridge = registry.resolve("projectors", "bridgeformer")
    dtype = jnp.bfloat16 if is_accelerator() else jnp.float32
    llm = None
    if "llm" in module.NEEDS:
        family = registry.resolve("llms", "llama")
        llm = (family, family.config_from_hf(size.llm))
    spec = step_lib.StepSpec(
        projector=bridge.Projector(
            registry.make_config(bridge, shape.projector),
            size.llm["hidden_size"],
            _TABLE_RMS,
            dtype,
        ),
        objective=module,
        objective_config=registry.make_config(module, objective_values or {}),
        optimizer=optimizer.make(optimizer.Config(), _NUM_STEPS),
        augment=augment.Config(),
        llm=llm,
    )
    frozen = _frozen(size, num_rows, llm, dtype)
    frozen = step_lib.with_constants(module, spec.objective_config, frozen, llm)
    data = _corpus(size, shape, num_rows, corpus * shape.batch_size)
    return Problem(spec, _state(spec, frozen, data), frozen, data, shape)


def random_llm(family, config, dtype: Any) -> PyTree:
    """Random parameters of an LLM, made on the device."""
    shapes = jax.eval_shape(
        lambda: family.LLM(config, dtype).init(
            jax.random.key(0),
            jnp.zeros((1, 2, config.dim)),
            jnp.arange(2)[None],
            jnp.ones((1, 2), bool),
        )["params"]
    )
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)

    @jax.jit
    def fill():
        made = [
            jnp.ones(x.shape, dtype)
            if path_name(path).endswith("scale")
            else _TABLE_RMS * jax.random.normal(jax.random.key(i), x.shape, dtype)
            for i, (path, x) in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, made)

    return fill()


def _frozen(size: Size, num_rows: int, llm: Any, dtype: Any) -> Frozen:
    width = size.llm["hidden_size"]
    table = _TABLE_RMS * jax.random.normal(jax.random.key(2), (num_rows, width), jnp.float32)
    frozen = Frozen(table_VD=table, row_ids_V=jnp.arange(num_rows, dtype=jnp.int32))
    if llm is None:
        return frozen
    ids = np.arange(size.prefix_tokens + size.suffix_tokens, dtype=np.int32) + 5
    return dataclasses.replace(
        frozen,
        llm=joined.for_decoding(random_llm(llm[0], llm[1], dtype)),
        prefix_ids_P=jnp.asarray(ids[: size.prefix_tokens]),
        suffix_ids_P=jnp.asarray(ids[size.prefix_tokens :]),
        slot_ids_V=frozen.row_ids_V,
    )


def _corpus(size: Size, shape: StepShape, num_rows: int, num: int) -> Batch:
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((num, shape.num_frames, size.features_dim), np.float32)
    return Batch(
        features_BTE=jnp.asarray(frames, jnp.float16),
        num_frames_B=jnp.full((num,), shape.num_frames, jnp.int32),
        target_ids_BL=jnp.asarray(rng.integers(1, num_rows, (num, shape.num_targets)), jnp.int32),
        num_targets_B=jnp.full((num,), shape.num_targets, jnp.int32),
        weight_B=jnp.ones((num,), jnp.float32),
        index_B=jnp.arange(num, dtype=jnp.int32),
    )


def _state(spec: step_lib.StepSpec, frozen: Frozen, corpus: Batch) -> step_lib.TrainState:
    mask = jnp.ones((1, corpus.features_BTE.shape[1]), bool)
    init = jax.jit(spec.projector.init)
    projector = init(jax.random.key(3), corpus.features_BTE[:1], mask)["params"]
    objective = spec.objective.init(spec.objective_config, jax.random.key(4), frozen)
    params = {"projector": projector, "objective": objective}
    fixed = jax.tree.map(lambda _: None, params)
    return step_lib.init_state(spec, params, fixed, 0)


def run(
    case: str,
    size_name: str,
    variant: str,
    problem: Problem,
    table_bytes: float,
    profile: bool = True,
) -> Row:
    """Times the loop's compiled steps.

    Args:
        case: name of the row. size_name: of its size. variant: of the row.
        problem: what is run; its state is given away.
        table_bytes: bytes of frozen arrays that a step must read.
        profile: trace a call on an accelerator, too.
    """
    steps = 20 if is_accelerator() else 1
    shape = problem.shape
    rng = np.random.default_rng(1)
    index_KB = jnp.asarray(
        rng.integers(0, len(problem.corpus.weight_B), (steps, shape.batch_size)), jnp.int32
    )
    weight_KB = jnp.ones(index_KB.shape, jnp.float32)
    args = (problem.frozen, problem.corpus, index_KB, weight_KB, steps)
    make_steps = step_lib.make_resident_steps(problem.spec)
    facts: dict[str, Any] = {"state_mb": tree_bytes(problem.state) / 1e6}
    trained = sum(x.size for x in jax.tree.leaves(problem.state.trainable))
    batch_bytes = tree_bytes(problem.batch())
    flops = count_flops(
        lambda s, f, b: step_lib.train_step(problem.spec, s, f, b)[0],
        problem.state, problem.frozen, problem.batch(),
    )  # fmt: skip
    start_s = time.perf_counter()
    compiled = make_steps.lower(problem.state, *args, max_frames=shape.num_frames).compile()
    facts["compile_s"] = time.perf_counter() - start_s
    memory = compiled.memory_analysis()
    facts["temporaries_mb"] = memory.temp_size_in_bytes / 1e6 if memory else None
    holder = [problem.state]

    def call():
        holder[0], metrics = compiled(holder[0], *args)
        return metrics["loss"]

    times = per(measure(call), steps)
    facts["profile"] = kernels(call) if profile else {}
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    facts |= {
        "peak_device_mb": None if peak is None else peak / 1e6,
        "trainable_params": trained,
        "loss": float(call()[-1]),
    }
    return Row(
        case=case,
        size=size_name,
        variant=variant,
        flops=flops,
        # Parameters and both moments are read and written once, a batch of frames and the table read.
        num_bytes=2 * 3 * 4 * trained + batch_bytes + table_bytes,
        dtype=jnp.dtype(problem.spec.projector.dtype).name,
        facts=facts,
        **times,
    )


def embedlink(size: Size, size_name: str) -> list[Row]:
    """The paper's objective: rows that training reads, and the whole table."""
    rows = []
    for variant, num_rows in size.tables().items():
        problem = make(size, "embedlink", num_rows)
        read = problem.shape.batch_size * problem.shape.projector["num_tokens"]
        table_bytes = 4.0 * read * size.llm["hidden_size"]
        rows.append(run("embedlink", size_name, variant, problem, table_bytes))
    return rows


def embedlink_ctc(size: Size, size_name: str) -> list[Row]:
    """CTC against the rows that training reads, and against the whole table."""
    rows = []
    for variant, num_rows in size.tables().items():
        values = {"logits_dtype": "float16"} if is_accelerator() else {}
        problem = make(size, "embedlink_ctc", num_rows, values)
        itemsize = 2 if values else 4
        table_bytes = float(itemsize) * num_rows * size.llm["hidden_size"]
        rows.append(run("embedlink_ctc", size_name, variant, problem, table_bytes))
    return rows


def next_token(size: Size, size_name: str) -> list[Row]:
    """Cross-entropy through the LLM, with and without recomputed activations."""
    rows = []
    dtype = "bfloat16" if is_accelerator() else "float32"
    for variant, remat in (("activations kept", False), ("activations recomputed", True)):
        values = {"llm_dtype": dtype, "remat": remat}
        problem = make(size, "next_token", size.seen_rows, values)
        llm_bytes = tree_bytes(problem.frozen.llm)
        rows.append(run("next_token", size_name, variant, problem, 2.0 * llm_bytes))
    return rows
