"""Both frameworks side by side on one config: every part a process of its own, results kept as they come.

<workdir>/config.json, config.py   the resolved config that all processes read
<workdir>/jax, torch-<mode>        workdirs of the training runs, scored by `experiments.evaluate`
<workdir>/compare.json             all figures so far; compare.md the table; compare.png the picture
"""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from absl import logging
from matplotlib.ticker import NullFormatter

from tiny_align_jax.types import ConfigError

NORMALIZER = "whisper_english"
_CHECKS = 20  # validation checks a run, if the config asks for none: time to quality needs them
_COLUMNS = {
    "validation wer": "validation_wer",
    "test wer": "test_wer",
    "test rouge1": "test_rouge1",
    "step ms": "step_ms",
    "train s": "train_s",
    "s to {target:.3f}": "quality_s",
    "start-up s": "first_step_s",
    "compile s": "compile_s",
    "device MB": "peak_device_mb",
    "host MB": "peak_rss_mb",
    "tokens/s": "tokens_per_s",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        torch_modes: modes of the baseline to train in, see `step.MODES`.
        torch_changes: dotted config keys that only the baseline gets, e.g. another objective.
        decode_size: shape of `benchmark_sizes` whose greedy generation is timed; '' for none.
        score_test: score the test set, too.
        device: of PyTorch, '' for its own choice.
        timeout_s: limit of each process.
    """

    torch_modes: tuple[str, ...] = ("eager",)
    torch_changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decode_size: str = ""
    score_test: bool = True
    device: str = ""
    timeout_s: float = 600.0


def run(
    config: Mapping[str, Any], workdir: str | os.PathLike, cache_dir: str, settings: Settings
) -> dict[str, Any]:
    """Runs all parts; one that fails is named in its row and leaves the others alone.

    Args:
        config: resolved sections, as plain mappings.
        workdir: written to.
        cache_dir: folder of weights, features and compiled programs.
        settings: what to compare.

    Returns:
        Contents of compare.json.
    """
    folder = Path(workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(dict(config))
    if not config["train"]["validate_every"]:
        config["train"]["validate_every"] = max(1, config["train"]["num_steps"] // _CHECKS)
    jax_config, torch_config = config, changed(config, settings.torch_changes)
    _write_config(folder / "config", jax_config)
    _write_config(folder / "torch_config", torch_config)
    runner = _Runner(folder, cache_dir, settings)
    # Frames are extracted before either side is timed.
    runner.python("features", "experiments.extract_features", f"--config={folder}/config.py")
    rows = [runner.jax(), *(runner.torch(mode) for mode in settings.torch_modes)]
    found = {"settings": dataclasses.asdict(settings), "config": config, "rows": rows}
    _write(folder, found)
    for row in rows if settings.score_test else ():
        row |= runner.attempt("test", lambda row=row: runner.test_scores(row["workdir"]))
        _write(folder, found)
    for row in rows if settings.decode_size else ():
        row |= runner.attempt("decode", lambda row=row: runner.tokens_per_s(row["mode"]))
        _write(folder, found)
    return found


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config with dotted keys replaced.

    Raises:
        ConfigError: a key's section does not exist.
    """
    made = copy.deepcopy(dict(config))
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = made
        for name in sections:
            if not isinstance(node.get(name), dict):
                raise ConfigError(f"no section {name!r} for key {key!r} in the config")
            node = node[name]
        node[last] = value
    return made


class _Runner:
    """Starts the processes and reads what they leave."""

    def __init__(self, folder: Path, cache_dir: str, settings: Settings):
        self._folder, self._cache_dir, self._settings = folder, cache_dir, settings

    def jax(self) -> dict[str, Any]:
        """Our run."""
        name = "jax"

        def train():
            self.python(
                name,
                "experiments.train",
                f"--config={self._folder}/config.py",
                f"--workdir={self._folder / name}",
                "--noresume",
                "--noprogress",
            )
            return training_row(self._folder / name)

        return {"name": name, "mode": "", "workdir": name} | self.attempt(name, train)

    def torch(self, mode: str) -> dict[str, Any]:
        """The baseline's run in one mode."""
        name = f"torch-{mode}"

        def train():
            device = [f"--device={self._settings.device}"] if self._settings.device else []
            self.python(
                name,
                "third_party.torch_baseline.train",
                f"--config={self._folder}/torch_config.json",
                f"--workdir={self._folder / name}",
                f"--mode={mode}",
                "--noprogress",
                *device,
            )
            return training_row(self._folder / name)

        objective = self._settings.torch_changes.get("objective.name", "")
        label = f"{name} {objective}".strip()
        return {"name": label, "mode": mode, "workdir": name} | self.attempt(name, train)

    def test_scores(self, name: str) -> dict[str, float]:
        """The package's own evaluation of a workdir, whoever trained it."""
        workdir = self._folder / name
        llm_reads = "next_token" in (workdir / "projector.json").read_text()
        # What was trained through the LLM is read by it, from raw audio tokens.
        flags = ["--snap=none"] if llm_reads else ["--use_llm=false"]
        self.python(
            f"{name}-test", "experiments.evaluate", f"--workdir={workdir}", "--noprogress", *flags
        )
        tag = ".none" if llm_reads else ".no_llm"
        metrics = json.loads((workdir / f"metrics{tag}.json").read_text())
        system = "answer" if llm_reads else "heard"
        scores = metrics["normalizers"][NORMALIZER]["scores"][system]["all"]
        return {f"test_{m}": scores[m]["value"] for m in ("wer", "rouge1")}

    def tokens_per_s(self, mode: str) -> dict[str, float]:
        """Greedy generation, batch 1, of an LLM of random weights; `mode` '' is ours."""
        size = self._settings.decode_size
        if mode:
            mode = "reduce-overhead" if mode == "cuda-graph" else mode
            path = self._folder / f"decode-{mode}.json"
            device = [f"--device={self._settings.device}"] if self._settings.device else []
            arguments = ("--case=decode", f"--size={size}", f"--mode={mode}", "--batch_size=1")
            module = "third_party.torch_baseline.timing"
            self.python(
                f"decode-{mode}", module, *arguments, f"--json={path}", *device, cached=False
            )
            return {"tokens_per_s": json.loads(path.read_text())["tokens_per_s"]}
        out = self._folder / "decode"
        self.python(
            "decode-jax", "experiments.benchmark", "--here", "--cases=decode", f"--size={size}",
            f"--out={out}",
        )  # fmt: skip
        rows = json.loads((out / "rows" / f"decode.{size}.json").read_text())
        return {"tokens_per_s": rows[0]["facts"]["tokens_per_s"]}

    def python(self, name: str, module: str, *arguments: str, cached: bool = True) -> None:
        """Runs a module to its end; its output goes to a file.

        Raises:
            RuntimeError: it failed; says where its output is.
        """
        log = self._folder / f"{name}.log"
        command = [sys.executable, "-m", module, *arguments]
        command += [f"--cache_dir={self._cache_dir}"] if cached else []
        environment = {
            "JAX_COMPILATION_CACHE_DIR": f"{self._cache_dir}/programs",
            "TORCHINDUCTOR_CACHE_DIR": f"{self._cache_dir}/inductor",
            **os.environ,
        }
        start_s = time.monotonic()
        with log.open("w") as file:
            done = subprocess.run(
                command,
                env=environment,
                stdout=file,
                stderr=file,
                timeout=self._settings.timeout_s,
                check=False,
            )
        logging.info("%s: %.0f s", name, time.monotonic() - start_s)
        if done.returncode:
            last = log.read_text().strip().splitlines()[-1:] or ["no output"]
            raise RuntimeError(f"{name} failed ({done.returncode}): {last[0]}; all of it in {log}")

    def attempt(self, name: str, part) -> dict[str, Any]:
        """What `part` returns, or why it failed."""
        try:
            return part()
        except Exception as error:  # whatever it is, the other parts go on
            logging.error("%s: %s", name, error)
            return {f"{name} error": str(error)}


def training_row(workdir: Path) -> dict[str, Any]:
    """Figures of a finished run: of ours and of the baseline's alike."""
    result = json.loads((workdir / "train_result.json").read_text())
    entries = [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]
    step_s = result["train_s"] / result["step"]
    checks = [
        {"step": e["step"], "seconds": e["step"] * step_s, "wer": e["validation/wer"]}
        for e in entries
        if "validation/wer" in e
    ]
    kept = ("train_s", "compile_s", "peak_device_mb", "peak_rss_mb")
    return {
        **{key: result.get(key) for key in kept},
        # The baseline reads through our package; a PyTorch user would not import JAX for it.
        "first_step_s": result["first_step_s"] - result.get("reader_import_s", 0.0),
        "trainable_params": result["trainable_params"],
        "step_ms": 1e3 * step_s,
        "validation_wer": result["validation"].get("wer"),
        "checks": checks,
        "losses": [[e["step"], e["loss"]] for e in entries if "loss" in e],
    }


def time_to(row: Mapping[str, Any], target: float) -> float | None:
    """Training seconds until the first validation check at or below `target`."""
    seconds = [c["seconds"] for c in row.get("checks", ()) if c["wer"] <= target]
    return min(seconds, default=None)


def quality_target(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The best WER of the row whose best is worst: what every row reached."""
    best = [min(c["wer"] for c in row["checks"]) for row in rows if row.get("checks")]
    return max(best, default=None)


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    """The config as JSON, and as a config file that gives it back."""
    path.with_suffix(".json").write_text(json.dumps(config, indent=1) + "\n")
    path.with_suffix(".py").write_text(
        '"""Made by experiments.compare_torch."""\n\nimport json\nimport pathlib\n\n'
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n"
        f'    path = pathlib.Path(__file__).with_name("{path.name}.json")\n'
        "    return ConfigDict(json.loads(path.read_text()))\n"
    )


def _write(folder: Path, found: dict[str, Any]) -> None:
    """Files that a reader may look at any time."""
    target = quality_target(found["rows"])
    found["target_wer"] = target
    for row in found["rows"]:
        row["quality_s"] = None if target is None else time_to(row, target)
    (folder / "compare.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "compare.md").write_text(table(found))
    plot(found, folder / "compare.png")


def table(found: Mapping[str, Any]) -> str:
    """A row a run; ratios to ours in brackets would hide the figures, so a second table has them."""
    target = found["target_wer"]
    names = [name.format(target=target or float("nan")) for name in _COLUMNS]
    lines = ["| run | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for row in found["rows"]:
        cells = [_number(row.get(key)) for key in _COLUMNS.values()]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    ours = found["rows"][0]
    lines += ["", "Times of the baseline over ours (tokens/s: ours over the baseline's):", ""]
    for row in found["rows"][1:]:
        parts = []
        for name, key in zip(names, _COLUMNS.values(), strict=True):
            mine, other = ours.get(key), row.get(key)
            if key.endswith(("_s", "_ms")) and mine and other:
                ratio = mine / other if key == "tokens_per_s" else other / mine
                parts.append(f"{name} {ratio:.2f}")
        lines.append(f"- {row['name']}: " + ", ".join(parts))
    errors = [
        f"- {row['name']}: {v}" for row in found["rows"] for k, v in row.items() if "error" in k
    ]
    return "\n".join([*lines, *(["", "Failed:", *errors] if errors else [])]) + "\n"


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Validation WER against training seconds, losses against steps, step times."""
    rows = [row for row in found["rows"] if row.get("checks")]
    figure, (quality, loss, bars) = plt.subplots(1, 3, figsize=(15, 4.2))
    for row in rows[::-1]:  # bars are drawn upwards
        bar = bars.barh(row["name"], row["step_ms"], color=_color(rows, row), height=0.6)
        bars.bar_label(bar, [f" {_number(row['step_ms'])} ms"])
    for row in rows:
        checks = row["checks"]
        quality.plot(
            [c["seconds"] for c in checks],
            [c["wer"] for c in checks],
            marker="o",
            ms=3,
            color=_color(rows, row),
            label=row["name"],
        )
        loss.plot(
            *zip(*row["losses"], strict=True), lw=1, color=_color(rows, row), label=row["name"]
        )
    if found["target_wer"] is not None and rows:
        quality.axhline(found["target_wer"], color="grey", lw=0.8, ls="--", label="reached by all")
    quality.set(
        xlabel="training seconds, compilation left out", ylabel="validation WER", xscale="log"
    )
    quality.xaxis.set_minor_formatter(
        NullFormatter()
    )  # or they lie upon each other within a decade
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    bars.set(xlabel="ms a step")
    bars.margins(x=0.3)  # room for the labels
    for axis in (quality, loss, bars):
        axis.spines[["top", "right"]].set_visible(False)
    if rows:
        quality.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _color(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
    return f"C{rows.index(row)}"


def _number(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
        if abs(value) >= 10
        else f"{value:.3f}"
    )
