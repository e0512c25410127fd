"""Where a run's numbers go: JSON lines for programs, TensorBoard for eyes, one bar for patience."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tqdm

from tiny_align_jax.train import checkpoint

LOG_FILE = "train.jsonl"


class RunLog:
    """Appends scalars of a run to `train.jsonl` and TensorBoard; a context manager.

    A resumed run first drops what it will log again, so that no step is logged twice.
    """

    def __init__(self, workdir: str | os.PathLike, first_step: int, num_steps: int, progress: bool):
        folder = Path(workdir)
        path = folder / LOG_FILE
        if path.exists():
            _drop_lines_to_come(path, first_step, num_steps)
        self._file = path.open("a")
        self._board = _summary_writer()(
            str(folder / "tensorboard"),
            purge_step=first_step + 1,  # hides them in the event files of earlier processes, too
            filename_suffix=f".{first_step}",  # names are made of seconds, which two quick runs share
        )
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            desc="train",
            disable=not progress,
            smoothing=0.1,
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *unused) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of scalars after `step` steps."""
        rounded = {k: float(f"{float(v):.6g}") for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        for name, value in rounded.items():
            self._board.add_scalar(name, value, step)

    def progress(self, step: int, shown: Mapping[str, float]) -> None:
        """Moves the bar to `step` and shows a few values."""
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
        self._bar.update(step - self._bar.n)


def _summary_writer() -> Any:
    """tensorboardX's writer, without the torch that it loads where it is installed: 0.8 s and 140 MB."""
    unloaded = "torch" not in sys.modules
    if unloaded:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        from tensorboardX import SummaryWriter
    finally:
        if unloaded:
            del sys.modules["torch"]
    return SummaryWriter


def _drop_lines_to_come(path: Path, first_step: int, num_steps: int) -> None:
    """Keeps the lines of a log that a run going on from `first_step` will not write again."""
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # a line that a kill tore: it lies after the last checkpoint
            continue
        # The validation after the last step is repeated by a run that finds nothing left to train.
        repeated = first_step >= num_steps and any(k.startswith("validation/") for k in line)
        if line["step"] < first_step or (0 < line["step"] == first_step and not repeated):
            kept.append(text + "\n")
    checkpoint.write_text(path, "".join(kept))
