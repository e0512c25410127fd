"""Runs benchmark cases, each in a process of its own, and keeps what is there when one fails.

<out>/rows/<case>.<size>.json   rows of one process, written when it ends; the baseline's have a name each
<out>/benchmark.json            machine, ceilings and all rows so far
<out>/benchmark.md              the table
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tiny_align_jax import benchmark_sizes, benchmark_table, benchmark_torch
from tiny_align_jax.types import ConfigError, Utterance

# Cases in the order they run, with the sizes an accelerator and a CPU run them at.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ceilings": (("smollm2",), ("smollm2_tiny_en",)),
    "embedlink": (("llama1b",), ("smollm2_tiny_en",)),
    "embedlink_ctc": (("smollm2",), ("smollm2_tiny_en",)),
    "next_token": (("llama1b",), ("smollm2_tiny_en",)),
    "input": (("smollm2",), ("smollm2_tiny_en",)),
    "decode": (("llama1b", "smollm2"), ("smollm2_tiny_en",)),
    "decode_quantised": (("llama1b",), ("smollm2_tiny_en",)),
    "encoder": (("smollm2",), ("smollm2_tiny_en",)),
    "corpus": (("smollm2",), ("smollm2_tiny_en",)),
    "startup": (("smollm2",), ("smollm2_tiny_en",)),
}
SMOKE_CASES = ("embedlink_ctc", "decode", "encoder")
# How cost grows, a case an axis: run when named, or all of them by the name 'scaling'.
SCALING = {
    f"scaling_{axis}": (("small",), ("small",))
    for axis in ("utterances", "length", "batch", "width", "slots")
}
_INSIDE = ("first_step",)  # run by other cases


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a benchmark runs.

    Attributes:
        cases: names; all of CASES if empty; 'scaling' stands for all of SCALING.
        size: one size for every case; '' for each case's own.
        utterances: corpus for case 'corpus'; made-up noise if empty.
        torch_modes: of the PyTorch baseline, which runs after our own case; none if empty.
        torch_first: run the baseline on the first variant of a case only.
        timeout_s: limit of each process.
        projector: JSON of BridgeFormer's keys that replace a size's own, to compare switches.
        keep: do not run what the folder of results has rows of.
        budget_s: start no process after so many seconds; what is missing then has no row.
    """

    cases: tuple[str, ...] = ()
    size: str = ""
    utterances: tuple[Utterance, ...] = ()
    torch_modes: tuple[str, ...] = ()
    torch_first: bool = False
    timeout_s: float = 420.0
    projector: str = "{}"
    keep: bool = False
    budget_s: float = float("inf")

    def __post_init__(self):
        known = (*CASES, "scaling", *SCALING)
        unknown = [c for c in self.cases if c not in (*known, *_INSIDE)]
        if unknown:
            raise ConfigError(
                f"unknown case(s) {', '.join(unknown)}; there are: {', '.join(known)}"
            )
        strangers = [m for m in self.torch_modes if m not in benchmark_torch.MODES]
        if strangers:
            known = ", ".join(benchmark_torch.MODES)
            raise ConfigError(f"unknown torch mode(s) {', '.join(strangers)}; there are: {known}")
        if self.size:
            benchmark_sizes.find(self.size)


def run_all(
    settings: Settings, out: Path, command: Sequence[str], cache_dir: str
) -> list[dict[str, Any]]:
    """Runs every case in a process of its own; failures are logged and leave the others alone.

    Args:
        settings: what to run.
        out: folder of results.
        command: arguments of Python that run one case here: `{case}`, `{size}`, `{out}` and
            `{programs}`, the folder that keeps compiled programs, are filled in.
        cache_dir: the usual folder of compiled programs.

    Returns:
        All rows.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    is_accelerator = False
    end_s = time.monotonic() + settings.budget_s
    named = [n for c in settings.cases for n in (SCALING if c == "scaling" else (c,))]
    for case in dict.fromkeys(("ceilings", *(named or CASES))):
        on_accelerator, on_cpu = (CASES | SCALING)[case]
        sizes = (settings.size,) if settings.size else on_accelerator if is_accelerator else on_cpu
        for size in sizes:
            if settings.keep and _path(out, case, size).exists():
                rows += read_rows(out, case, size)
            elif time.monotonic() < end_s:
                rows += _run_one(command, case, size, out, cache_dir, settings.timeout_s)
            _write(out, rows)
            if case in benchmark_torch.CASES and settings.torch_modes:
                rows += benchmark_torch.rows(case, size, settings, out / "rows", end_s)
            is_accelerator = is_accelerator or any(r["facts"].get("accelerator") for r in rows)
            _write(out, rows)
    return rows


def _run_one(
    command: Sequence[str], case: str, size: str, out: Path, cache_dir: str, timeout_s: float
) -> list[dict[str, Any]]:
    line = [part.format(case=case, size=size, out=out, programs=cache_dir) for part in command]
    start_s = time.monotonic()
    try:
        subprocess.run([sys.executable, *line], check=True, timeout=timeout_s)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        logging.error("case %s at %s failed: %s", case, size, error)
        failed = {"variant": "", "framework": "jax", "error": type(error).__name__, "facts": {}}
        return [{"case": case, "size": size, **failed}]
    logging.info("case %s at %s: %.0f s", case, size, time.monotonic() - start_s)
    return read_rows(out, case, size)


def run_here(settings: Settings, out: Path, command: Sequence[str]) -> None:
    """Runs the one case of `settings` in this process and writes its rows."""
    (case,) = settings.cases
    size = benchmark_sizes.find(settings.size).with_projector(json.loads(settings.projector))
    rows = [dataclasses.asdict(row) for row in _case(case, settings, command)(size, settings.size)]
    path = _path(out, case, settings.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))


def read_rows(out: Path, case: str, size: str) -> list[dict[str, Any]]:
    """What `run_here` wrote."""
    return json.loads(_path(out, case, size).read_text())


def _path(out: Path, case: str, size: str) -> Path:
    return out / "rows" / f"{case}.{size}.json"


def _case(case: str, settings: Settings, command: Sequence[str]) -> Callable:
    """The function of a case: (size, its name) -> rows. JAX starts here, not in the parent."""
    from tiny_align_jax import (
        benchmark_decode,
        benchmark_features,
        benchmark_input,
        benchmark_quantised,
        benchmark_scaling,
        benchmark_startup,
        benchmark_steps,
        benchmark_timing,
    )

    def startup(size, size_name):
        line = [
            part.replace("{case}", "first_step").replace("{size}", size_name) for part in command
        ]
        return benchmark_startup.startup(line, size_name, read_rows)

    def corpus(size, size_name):
        return benchmark_features.corpus(size, size_name, settings.utterances)

    if case in SCALING:
        return benchmark_scaling.AXES[case.removeprefix("scaling_")]
    return {
        "ceilings": benchmark_timing.ceilings,
        "embedlink": benchmark_steps.embedlink,
        "embedlink_ctc": benchmark_steps.embedlink_ctc,
        "next_token": benchmark_steps.next_token,
        "input": benchmark_input.input_share,
        "decode": benchmark_decode.decode,
        "decode_quantised": benchmark_quantised.decode_quantised,
        "encoder": benchmark_features.encoder,
        "corpus": corpus,
        "startup": startup,
        "first_step": benchmark_startup.first_step,
    }[case]


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    (out / "benchmark.json").write_text(json.dumps({"rows": rows}, indent=1))
    (out / "benchmark.md").write_text(benchmark_table.table(rows))
