"""The PyTorch baseline's rows: the same shapes, a process a row, never imported here."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tiny_align_jax import benchmark_sizes

MODULE = "third_party.torch_baseline.timing"
MODES = ("eager", "default", "reduce-overhead", "max-autotune", "cuda-graph")
CASES = ("embedlink", "embedlink_ctc", "next_token", "decode", "encoder")


def rows(
    case: str, size_name: str, modes: Sequence[str], timeout_s: float, first: bool = False
) -> list[dict[str, Any]]:
    """Rows of one case in every mode; a mode that fails or takes too long leaves a row that says so.

    With `first`, of the case's first variant only.
    """
    size = benchmark_sizes.find(size_name)
    found = []
    variants = list(_variants(case, size).items())
    for variant, arguments in variants[:1] if first else variants:
        for mode in modes:
            if mode == "cuda-graph" and case in ("decode", "encoder"):
                continue  # 'reduce-overhead' is CUDA graphs there
            row = {
                "case": case,
                "size": size_name,
                "variant": variant,
                "framework": f"torch {mode}",
            }
            line = [f"--case={case}", f"--mode={mode}", f"--size={size_name}", *arguments]
            found.append(row | _run(line, timeout_s))
    return found


def _variants(case: str, size: benchmark_sizes.Size) -> dict[str, list[str]]:
    """Arguments of the baseline by the variant that our own rows have."""
    if case in ("embedlink", "embedlink_ctc"):
        return {variant: [f"--rows={n}"] for variant, n in size.tables().items()}
    if case == "decode":
        return {f"batch {n}": [f"--batch_size={n}"] for n in size.decode.batch_sizes}
    if case == "encoder":
        return {f"batch {size.encoder_batch} x {size.window_s:g} s": []}
    return {"activations kept": [f"--rows={size.seen_rows}"]}


def _run(line: Sequence[str], timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, "-m", MODULE, *line, f"--json={path}"]
        try:
            subprocess.run(command, check=True, timeout=timeout_s, stdout=subprocess.DEVNULL)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            logging.error("%s", error)
            return {"error": type(error).__name__, "facts": {}}
        measured = json.loads(path.read_text())
    times = {name: measured.pop(f"{theirs}_ms") / 1e3 for name, theirs in _TIMES.items()}
    facts = {k: v for k, v in measured.items() if k in _FACTS and v is not None}
    return {
        **times,
        "repeats": measured["repeats"],
        "flops": 0.0,
        "num_bytes": 0.0,
        "dtype": "",
        "facts": facts,
    }


_TIMES = {"seconds": "median", "low_s": "low", "high_s": "high"}
_FACTS = (
    "compile_s",
    "peak_device_mb",
    "tokens_per_s",
    "prompt_ms",
    "trainable_params",
    "times_real_time",
    "machine",
)
