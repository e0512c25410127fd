"""Share of a training run's seconds in which the host prepares input: the loop itself, over a cache on disk."""

import tempfile
from pathlib import Path

import jax
import numpy as np

from tiny_align_jax import benchmark_steps, registry
from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.benchmark_timing import Row, is_accelerator
from tiny_align_jax.data import batching
from tiny_align_jax.features import cache
from tiny_align_jax.train import loop

_EPOCH = 8  # steps
SETTINGS = {
    "streamed from the cache": {"resident": "never"},
    "on the device, an epoch a dispatch": {"resident": "always", "steps_per_dispatch": 0},
}


def input_share(size: Size, size_name: str) -> list[Row]:
    """`embedlink_ctc` training with frames read from a memory-mapped file, and with frames on the device."""
    rows = []
    num_steps = _EPOCH * (50 if is_accelerator() else 2)
    for variant, values in SETTINGS.items():
        with tempfile.TemporaryDirectory(prefix="tiny_align_jax_benchmark_") as folder:
            problem = benchmark_steps.make(size, "embedlink_ctc", size.seen_rows, corpus=_EPOCH)
            values = {
                "num_steps": num_steps,
                "batch_size": problem.shape.batch_size,
                "num_buckets": 1,
                "log_every": num_steps,
                **values,
            }
            run = loop.Run(
                config=registry.make_config(loop, values),
                spec=problem.spec,
                frozen=problem.frozen,
                examples=_on_disk(problem, Path(folder)),
                validate=None,
                seed=0,
            )
            result = loop.fit(run, problem.state, folder, progress=False)
        facts = {"input_share": result.input_s / result.train_s, "input_s": result.input_s}
        seconds = result.train_s / num_steps
        rows.append(Row("input", size_name, variant, seconds, repeats=num_steps, facts=facts))
    return rows


def _on_disk(problem: benchmark_steps.Problem, folder: Path) -> batching.Examples:
    """The problem's corpus as the feature cache holds one: a memory-mapped file."""
    corpus = jax.tree.map(np.asarray, problem.corpus)
    np.save(folder / "frames.npy", corpus.features_BTE.astype(cache.STORE_DTYPE))
    frames = np.load(folder / "frames.npy", mmap_mode="r")
    ids = [str(i) for i in range(len(frames))]
    return batching.make_examples(
        ids, corpus.num_frames_B, list(corpus.target_ids_BL), lambda i: frames[i]
    )
