"""Measures speed and memory: training steps, generation, the encoder, start-up.

    python -m experiments.benchmark --out=workdirs/benchmark [--cases=embedlink,decode] [--size=smollm2]

Every case runs in a process of its own, so that a failure loses nothing else and peak memory is the case's.
Weights and frames are random. Results: OUT/benchmark.json (grows case by case) and OUT/benchmark.md, a table with
medians, the floor from counted work over ceilings measured on this machine, and what share of it was reached.
`--cases=scaling` also draws how cost grows with utterances, their length, the batch, the LLM's width and its cache:
OUT/scaling_<axis>.png.

    python -m experiments.benchmark --preset=orin_8gb --smoke

runs a training step, decoding and the encoder in miniature, as the first thing on a new board, and prints the
commands that measure energy there.
"""

import sys
from pathlib import Path

from absl import flags

from experiments import _device, _main
from tiny_align_jax import benchmark, benchmark_energy, benchmark_table

CASES = flags.DEFINE_list(
    "cases", [], f"Some of: {', '.join(benchmark.CASES)} (default: all of these), scaling."
)
SIZE = flags.DEFINE_string("size", "", "One size for all cases (default: each case's own).")
OUT = flags.DEFINE_string("out", "workdirs/benchmark", "Folder of the results.")
TORCH = flags.DEFINE_list(
    "torch", [], "Modes of the PyTorch baseline to run beside: eager, default, reduce-overhead, ..."
)
TORCH_FIRST = flags.DEFINE_bool(
    "torch_first", False, "Run the baseline on the first variant of every case only."
)
TIMEOUT_S = flags.DEFINE_float("timeout_s", 420.0, "Limit of each process.")
BUDGET_S = flags.DEFINE_float("budget_s", float("inf"), "Start no process after so many seconds.")
KEEP = flags.DEFINE_bool("keep", False, "Do not run again what OUT/rows holds.")
PROJECTOR = flags.DEFINE_string(
    "projector", "{}", 'BridgeFormer keys to replace, e.g. {"attention": "xla"}.'
)
ENERGY_LOG = flags.DEFINE_string("energy_log", "", "Only sum up this log of tegrastats: joules.")
SMOKE = flags.DEFINE_bool("smoke", False, "Three cases in miniature: does this machine run us?")
HERE = flags.DEFINE_bool("here", False, "Run the one case in this process; used internally.")


def main(argv):
    del argv
    if ENERGY_LOG.value:
        text = Path(ENERGY_LOG.value).read_text(encoding="utf-8")
        return print(f"{benchmark_energy.joules(text):.1f} J")
    settings = benchmark.Settings(
        tuple(CASES.value) or (benchmark.SMOKE_CASES if SMOKE.value else ()),
        SIZE.value or ("tiny" if SMOKE.value else ""),
        torch_modes=tuple(TORCH.value),
        torch_first=TORCH_FIRST.value,
        timeout_s=TIMEOUT_S.value,
        projector=PROJECTOR.value,
        keep=KEEP.value,
        budget_s=BUDGET_S.value,
    )
    out = Path(OUT.value)
    command = [
        *("-m", "experiments.benchmark", "--here"),
        "--cases={case}",
        "--size={size}",
        "--out={out}",
        "--cache_dir={programs}",
        f"--preset={_device.DEVICE.value}",
        f"--projector={PROJECTOR.value.replace('{', '{{').replace('}', '}}')}",
    ]
    if HERE.value:
        benchmark.run_here(settings, out, command)
        return
    rows = benchmark.run_all(settings, out, command, _main.CACHE_DIR.value)
    print(benchmark_table.table(rows))
    if any(row["case"] in benchmark.SCALING for row in rows):
        from tiny_align_jax import benchmark_curves  # imports matplotlib, which a board may lack

        print(*benchmark_curves.write(rows, out), sep="\n")
    print(f"in {out}/benchmark.json and {out}/benchmark.md")
    if SMOKE.value:
        failed = [row["case"] for row in rows if "error" in row]
        print(benchmark_energy.commands(out))
        print(f"smoke test: {'FAILED: ' + ', '.join(failed) if failed else 'passed'}")
        sys.exit(bool(failed))


if __name__ == "__main__":
    _main.run(main)
