"""Measures how good memory plans are: predicted against measured peaks, a process a stage.

    python -m experiments.measure_memory --worlds=cpu --out=workdirs/memory
    python -m experiments.measure_memory --worlds=gpu --out=OUT --parallel=4
    python -m experiments.measure_memory --worlds=gpu --only=base_llama1b --out=OUT

Weights are random in the shapes of published models, speech is noise. Writes OUT/rows/*.json as they come,
OUT/memory.json and OUT/memory.md, and prints the table: MB, and how far the prediction is off ('!' beyond
10 % on the device, 15 % on the host).
"""

import json
from pathlib import Path

from absl import flags

from experiments import _device, _main

WORLDS = flags.DEFINE_string("worlds", "cpu", "Kind of worlds: 'cpu' or 'gpu'.")
ONLY = flags.DEFINE_list("only", [], "Some of the worlds by name.")
OUT = flags.DEFINE_string("out", "workdirs/memory", "Folder of the results.")
PARALLEL = flags.DEFINE_integer("parallel", 1, "Worlds at a time.")
HERE = flags.DEFINE_string("here", "", "Run this stage in this process; used internally.")


def main(argv):
    del argv
    from configs import common
    from tiny_align_jax import memory_truth  # imports JAX: after --help

    out, worlds = Path(OUT.value), memory_truth.find_worlds(WORLDS.value, ONLY.value)
    if HERE.value:
        ((name, world),) = worlds.items()
        base = json.loads(common.base().to_json_best_effort())
        return memory_truth.run_here(name, world, HERE.value, base, out)
    command = [
        "-m",
        "experiments.measure_memory",
        "--here={stage}",
        f"--worlds={WORLDS.value}",
        "--only={world}",
        f"--out={out}",
        f"--device={_device.DEVICE.value}",
    ]
    rows = memory_truth.measure_all(worlds, out, command, PARALLEL.value)
    text = memory_truth.table(rows)
    (out / "memory.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    _main.run(main)
