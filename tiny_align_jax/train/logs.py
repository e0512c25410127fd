"""Where a run's numbers go: JSON lines for programs, TensorBoard for eyes, one bar for patience."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import tqdm
from tensorboardX import SummaryWriter

LOG_FILE = "train.jsonl"


class RunLog:
    """Appends scalars of a run to `train.jsonl` and TensorBoard; a context manager.

    A resumed run first drops the lines at or after its first step, so that no step is logged twice.
    """

    def __init__(self, workdir: str | os.PathLike, first_step: int, num_steps: int, progress: bool):
        folder = Path(workdir)
        path = folder / LOG_FILE
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
            kept = [line for line in lines if line["step"] <= first_step and first_step > 0]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"))
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
