"""Trains a projector in PyTorch from the same config file and writes the same workdir as `experiments.train`.

    python -m third_party.torch_baseline.train --config=workdirs/so762/config.json --workdir=workdirs/so762_torch

`--config` is a resolved config (config.json of any workdir). The workdir can be evaluated by
`experiments.evaluate`: projector.safetensors has the same names and shapes. Also written: train.jsonl with losses and
validation scores by seconds, and train_result.json with times and peak memory.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tqdm
import transformers

from third_party.torch_baseline import bridgeformer, objectives
from third_party.torch_baseline import llm as llm_lib
from third_party.torch_baseline.step import MODES, Model, Trainer


def main() -> None:
    arguments = _arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = json.loads(Path(arguments.config).read_text())
    result = train(
        config,
        arguments.workdir,
        arguments.cache_dir,
        device=arguments.device,
        mode=arguments.mode,
        progress=not arguments.noprogress,
    )
    print(json.dumps(result, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache_dir = os.environ.get("TINY_ALIGN_CACHE", str(Path.home() / ".cache" / "tiny_align"))
    parser.add_argument("--config", required=True, help="resolved config, JSON")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--cache_dir", default=cache_dir, help="folder of weights and features")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--noprogress", action="store_true")
    return parser.parse_args()


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    cache_dir: str,
    *,
    device: str = "cpu",
    mode: str = "eager",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains and exports.

    Args:
        config: resolved sections, as plain mappings.
        workdir: written to.
        cache_dir: folder of weights and features.
        device: of PyTorch.
        mode: one of `step.MODES`.
        progress: show a progress bar.

    Returns:
        The summary that is also written: seconds, validation scores, peak memory.
    """
    data_lib, reader_import_s = _import_readers()
    start_s = time.perf_counter()
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32, as JAX
    torch.manual_seed(config["seed"])
    values = data_lib.sections(config)
    data = data_lib.load(config, cache_dir, progress)
    read_s = time.perf_counter() - start_s
    model = make_model(config, values, data, device)
    trainer = Trainer(model, values["optimizer"], values["train"]["num_steps"], mode)
    corpus = data_lib.Corpus(data.train, values["train"], config["seed"], device)
    validate = Validation(config, model, data, device)
    result = _fit(trainer, corpus, values["train"], validate, folder, device, progress)
    bridgeformer.save(str(folder / "projector.safetensors"), model.projector, model.objective)
    summary = {
        "framework": f"torch {torch.__version__}, {mode}",
        "reader_import_s": round(reader_import_s, 2),
        "read_s": round(read_s, 2),
        **result,
        "trainable_params": sum(p.numel() for p in model.parameters()),
        "peak_rss_mb": round(_peak_rss_mb(), 1),
        "peak_device_mb": _peak_device_mb(device),
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    card = {**data.card, "versions": versions, "step": result["step"]}
    for name, value in (
        ("config.json", config),
        ("projector.json", card),
        ("train_result.json", summary),
    ):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    return summary


def _import_readers() -> tuple[Any, float]:
    """The module that reads through the JAX package, and the seconds that importing it took: no part of
    what a PyTorch user would wait for."""
    start_s = time.perf_counter()
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator is PyTorch's
    from third_party.torch_baseline import data

    return data, time.perf_counter() - start_s


def make_model(
    config: Mapping[str, Any], values: Mapping[str, Any], data: Any, device: str
) -> Model:
    """The projector and objective that the config names."""
    name = config["objective"]["name"]
    in_dim = data.card["encoder"]["dim"] * len(data.card["encoder"]["layers"])
    projector = bridgeformer.BridgeFormer(
        values["projector"], in_dim, data.table_VD.shape[1], data.out_rms
    )
    own, table_VD = values["objective"], torch.tensor(data.table_VD)
    if name == "next_token":
        llm = llm_lib.load(data.llm_folder.path, device, getattr(torch, own["llm_dtype"]))
        around = data.prompt.prefix_ids, data.prompt.suffix_ids
        objective: Any = objectives.NextToken(llm, data.rows.row_ids, *around, remat=own["remat"])
    else:
        made = {"embedlink": objectives.EmbedLink, "embedlink_ctc": objectives.EmbedLinkCTC}[name]
        objective = made(own, table_VD)
    dtype = getattr(torch, values["train"]["compute_dtype"])
    return Model(projector, objective, values["augment"], dtype).to(device).train()


class Validation:
    """Corpus WER and ROUGE-1 on validation speakers, by the package's own scorers."""

    def __init__(self, config: Mapping[str, Any], model: Model, data: Any, device: str):
        self._model, self._data, self._device = model, data, device
        self._generator: Any = None

    def _make_generator(self) -> Any:
        data = self._data
        longest = max(len(data.words.encode(text)) for text in data.references.values())
        return llm_lib.Generator(
            self._model.objective.llm,
            data.prompt.stop_ids,
            data.prompt.prefix_ids.tolist(),
            max_new_tokens=longest + 8,
        )

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Scores; none without validation speakers."""
        from tiny_align_jax.data import batching
        from tiny_align_jax.train import through_llm

        if self._data.validation is None:
            return {}
        self._model.eval()
        if isinstance(self._model.objective, objectives.NextToken):
            self._generator = self._generator or self._make_generator()
        texts, truths = [], []
        for batch in batching.batches_of(self._data.validation, 32, 2):
            features = torch.from_numpy(batch.features_BTE).to(self._device)
            frames = torch.from_numpy(np.asarray(batch.num_frames_B)).to(self._device)
            real = np.flatnonzero(batch.weight_B)
            texts += self._texts(features, frames, real)
            ids = [self._data.validation.ids[batch.index_B[row]] for row in real]
            truths += [self._data.references[i] for i in ids]
        self._model.train()
        return through_llm.score_texts(truths, texts)

    def _texts(self, features: torch.Tensor, frames: torch.Tensor, real: np.ndarray) -> list[str]:
        if self._generator is None:
            rows, keep = (x.cpu().numpy() for x in self._model.read(features, frames))
            return [self._data.rows.decode(rows[i][keep[i]]) for i in real]
        audio, valid = self._model.projector(features, frames)
        suffix = self._model.objective.embedded_suffix()
        tails = [torch.cat([audio[i][valid[i]].to(suffix.dtype), suffix]) for i in real]
        return [self._data.words.decode(made.ids).strip() for made in self._generator(tails)]


def _fit(
    trainer: Trainer,
    corpus: Any,
    train_values: Mapping[str, Any],
    validate: Validation,
    folder: Path,
    device: str,
    progress: bool,
) -> dict[str, Any]:
    """The loop. Times leave validation out; the first step of each padded length compiles."""
    num_steps, every = train_values["num_steps"], train_values["log_every"]
    seen: set[int] = set()
    compile_s = validate_s = first_step_s = 0.0
    scores: dict[str, float] = {}
    pending: list[tuple[int, torch.Tensor]] = []
    start_s = time.perf_counter()
    with (
        (folder / "train.jsonl").open("w") as log,
        tqdm.tqdm(total=num_steps, desc="torch", unit="step", disable=not progress) as bar,
    ):

        def write(step: int, row: Mapping[str, float]) -> None:
            seconds = time.perf_counter() - start_s - validate_s - compile_s
            log.write(json.dumps({"step": step, "seconds": round(seconds, 4), **row}) + "\n")
            log.flush()

        for step, batch in zip(range(1, num_steps + 1), corpus.batches(), strict=False):
            is_new = batch.features_BTE.shape[1] not in seen
            if is_new:
                _wait(device)
                began_s = time.perf_counter()
            loss = trainer(batch)
            if is_new:
                _wait(device)
                seen.add(batch.features_BTE.shape[1])
                compile_s += time.perf_counter() - began_s
                first_step_s = first_step_s or _seconds_since_start()
            if step % every == 0 or step == num_steps:
                pending.append((step, loss.clone()))
            due = train_values["validate_every"] and step % train_values["validate_every"] == 0
            if due or step == num_steps:
                _wait(device)
                for at, value in pending:
                    write(at, {"loss": float(value)})
                pending = []
                if step == num_steps:
                    train_s = time.perf_counter() - start_s - validate_s - compile_s
                began_s = time.perf_counter()
                scores = validate()
                validate_s += time.perf_counter() - began_s
                write(step, {f"validation/{k}": v for k, v in scores.items()})
                bar.set_postfix({k: f"{v:.3f}" for k, v in scores.items()}, refresh=False)
            bar.update()
    return {
        "step": num_steps,
        "train_s": round(train_s, 3),
        "step_ms": round(1e3 * train_s / max(num_steps - len(seen), 1), 4),
        "compile_s": round(compile_s, 2),
        "first_step_s": round(first_step_s, 2),
        "validation": scores,
    }


def _seconds_since_start() -> float:
    """Since this process began, imports included."""
    return time.time() - psutil.Process().create_time()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak_rss_mb() -> float:
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    except (OSError, IndexError):  # not Linux
        return psutil.Process().memory_info().rss / 1e6


def _peak_device_mb(device: str) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e6, 1) if device.startswith("cuda") else None


if __name__ == "__main__":
    main()
