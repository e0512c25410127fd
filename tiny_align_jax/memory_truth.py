"""Predicted against measured memory: real stages over random weights and noise, a process each.

A world is an encoder and an LLM of published shapes, a corpus of noise and a projector that has not been
trained. Its stages then run one after the other, each in a process of its own that does what the
command of that stage does, reads the peaks, and only then asks the planner.

<out>/models/                     random weights, a folder a model and dtype
<out>/worlds/<world>/             corpus, workdir; deleted when the world is done
<out>/programs/<world>.<stage>/   what a stage compiled: nothing is there beforehand
<out>/rows/<world>.<stage>.json   one measurement
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from tiny_align_jax import decode, evaluate, personalize, stand_in, transcribe
from tiny_align_jax.adapt import recipe
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import prompts
from tiny_align_jax.memory import plan, user_stage
from tiny_align_jax.memory.budget import Config
from tiny_align_jax.memory.kinds import with_work
from tiny_align_jax.memory.moments import Moments
from tiny_align_jax.train import corpus, run, setup
from tiny_align_jax.types import ConfigError

DEVICE_TOLERANCE, HOST_TOLERANCE = 0.10, 0.15
PREPARE = "prepare"
TIMEOUT_S = 1800
NEW_TOKENS = 16  # of an answer
_Mark = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class World:
    """What is measured together.

    Attributes:
        encoder, llm: published names.
        stages: of `memory.plan.STAGES`, in the order they run.
        dtype: of the LLM's files, and of its computation where `values` says nothing else.
        utterance_s: length of every utterance.
        num_utterances: of the corpus; a quarter of them is the test split.
        values: config keys (dotted) that differ from the experiments' defaults.
    """

    encoder: str
    llm: str
    stages: tuple[str, ...]
    dtype: str = "float32"
    utterance_s: float = 4.0
    num_utterances: int = 64
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FULL = {"vocabulary.kind": "full"}
_SMALL = {
    "vocabulary.kind": "full",
    "llm.dtype": "float32",
    "llm.quantize": {"weights": "int4", "table": "int4"},
    "encoder.quantize": {"weights": "int8"},
}
_INT4 = {"llm.quantize": {"weights": "int4"}}
_LONG = {"features.batch_size": 32, "encoder.window_s": 20.48}
WORLDS: dict[str, dict[str, World]] = {
    "gpu": {
        "base_llama1b": World(
            "whisper-base", "Llama-3.2-1B", ("features", "training"), "bfloat16", 10.0, 400, _LONG
        ),
        "base_llama1b_user": World(
            "whisper-base", "Llama-3.2-1B", ("personalisation", "evaluation"), "bfloat16"
        ),
        "base_llama1b_int4": World(
            "whisper-base", "Llama-3.2-1B", ("generation",), "bfloat16", values=_INT4
        ),
        "base_llama3b_int4": World(
            "whisper-base", "Llama-3.2-3B", ("generation",), "bfloat16", values=_INT4
        ),
        "small_llama3b": World(
            "whisper-small", "Llama-3.2-3B", ("training", "generation"), "bfloat16", values=_FULL
        ),
        "wavlm_smollm2": World(
            "wavlm-base-plus", "SmolLM2-135M", ("features", "evaluation"), "bfloat16"
        ),
        "through_qwen": World(
            "whisper-base",
            "Qwen2.5-0.5B",
            ("training", "generation"),
            "bfloat16",
            values={"objective.name": "next_token", "train.batch_size": 8},
        ),
    },
    "cpu": {
        "tiny_smollm2": World(
            "whisper-tiny.en",
            "SmolLM2-135M",
            ("features", "training", "personalisation", "generation", "evaluation"),
        ),
        "hubert_qwen": World("hubert-base-ls960", "Qwen2.5-0.5B", ("features", "generation")),
        "base_llama3b": World(
            "whisper-base", "Llama-3.2-3B", ("training", "generation"), "bfloat16", values=_SMALL
        ),
    },
}


def measure_all(
    worlds: Mapping[str, World], out: Path, command: Sequence[str], num_parallel: int
) -> list[dict[str, Any]]:
    """Measures all stages of all worlds; a failure is logged and loses its world's rest only.

    Args:
        worlds: by name.
        out: folder of results.
        command: arguments of Python that run `{stage}` of `{world}`.
        num_parallel: worlds at a time.
    """
    (out / "rows").mkdir(parents=True, exist_ok=True)

    def measure(name: str) -> None:
        for stage in (PREPARE, *worlds[name].stages):
            arguments = [part.format(world=name, stage=stage) for part in command]
            began_s = time.monotonic()
            if not _run(arguments, out / f"{name}.{stage}.log"):
                logging.error("%s.%s failed: see %s", name, stage, out / f"{name}.{stage}.log")
                break
            logging.info("%s.%s: %.0f s", name, stage, time.monotonic() - began_s)
        shutil.rmtree(out / "worlds" / name, ignore_errors=True)

    with futures.ThreadPoolExecutor(num_parallel) as pool:
        list(pool.map(measure, worlds))
    shutil.rmtree(out / "models", ignore_errors=True)
    rows = [json.loads(path.read_text()) for path in sorted((out / "rows").glob("*.json"))]
    (out / "memory.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def _run(arguments: list[str], log: Path) -> bool:
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                stdout=file,
                stderr=file,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def run_here(name: str, world: World, stage: str, base: Mapping[str, Any], out: Path) -> None:
    """Makes a world, or measures one of its stages, in this process.

    Args:
        name: of the world.
        world: what it is.
        stage: PREPARE, or one of `world.stages`.
        base: resolved config of an experiment, whose sections `world` changes.
        out: folder of results.
    """
    folder, programs = out / "worlds" / name, out / "programs" / f"{name}.{stage}"
    shutil.rmtree(programs, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    if stage == PREPARE:
        return _prepare(world, folder, base)
    config = json.loads((folder / "config.json").read_text())
    moments = Moments()
    _STAGES[stage](config, folder, moments.mark)
    last = moments.mark("end")
    row = {
        "platform": jax.default_backend(),
        "measured_device_bytes": last["device_peak_bytes"],
        "measured_host_bytes": last["host_peak_bytes"],
        "resident": last["resident"],
        "moments": list(moments.rows),  # the plan compiles, too
    }
    row |= {"world": name, "encoder": world.encoder, "llm": world.llm, "stage": stage}
    row |= {"dtype": world.dtype, "seconds": last["seconds"]}
    row |= _predict(world, config, folder, stage) | {"versions": setup.versions()}
    (out / "rows" / f"{name}.{stage}.json").write_text(json.dumps(row, indent=1), encoding="utf-8")


def _prepare(world: World, folder: Path, base: Mapping[str, Any]) -> None:
    """Models, corpus and the workdir of an untrained projector; features are cached on the way."""
    dtype = jnp.dtype(world.dtype)
    models = folder.parent.parent / "models"  # shared by worlds that run side by side
    encoder = stand_in.make_model_once("encoders", world.encoder, models)
    llm = stand_in.make_model_once("llms", world.llm, models, dtype)
    manifest = stand_in.make_corpus(folder / "audio", world.num_utterances, world.utterance_s)
    config = json.loads(json.dumps(base))
    config["dataset"] = {"name": "jsonl", "jsonl": {"manifest": str(manifest)}}
    config["encoder"].update(asset=str(encoder.path), window_s=5.12)
    config["llm"].update(asset=str(llm.path), dtype=world.dtype)
    config["split"].update(validation_speakers=1)
    config["prompt"]["examples"] = ()
    for key, value in world.values.items():
        section, _, field = key.partition(".")
        config[section][field] = value
    objective = config["objective"]["name"]
    config["objective"].setdefault(objective, {})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # Neither trained nor validated: all that costs time is what stages measure themselves.
    untrained = {**config, "train": {**config["train"], "num_steps": 0}}
    untrained["split"] = {**config["split"], "validation_speakers": 0}
    run.train(untrained, folder / "run", str(folder / "cache"), progress=False)


def _features(config: Mapping[str, Any], folder: Path, mark: _Mark) -> None:
    del mark
    utterances = corpus.read_split(config).train
    corpus.features(config, str(folder / "cache_of_features"), utterances, progress=False)


def _training(config: Mapping[str, Any], folder: Path, mark: _Mark) -> None:
    del mark
    config = {**config, "train": {**config["train"], "num_steps": 8}}
    run.train(config, folder / "trained", str(folder / "cache"), progress=False)


def _personalisation(config: Mapping[str, Any], folder: Path, mark: _Mark) -> None:
    base = Aligner.load(folder / "run", folder / "cache", need_llm=False)
    mark("load")
    said = corpus.read_split(config).test[:14]
    how = recipe.of_sections({"method": user_stage.DEFAULT_METHOD})
    personalize.personalize(base, folder / "run", str(folder / "cache"), "user", said, how)


def _generation(config: Mapping[str, Any], folder: Path, mark: _Mark) -> None:
    aligner = Aligner.load(folder / "run", folder / "cache", need_llm=True)
    mark("load")
    prompt = prompts.Config(examples=())
    answers = decode.Config(max_new_tokens=NEW_TOKENS)
    transcriber = transcribe.Transcriber(aligner, prompt, answers, "nearest")
    transcriber(corpus.read_split(config).test[0].audio_path)


def _evaluation(config: Mapping[str, Any], folder: Path, mark: _Mark) -> None:
    del config
    aligner = Aligner.load(folder / "run", folder / "cache", need_llm=True)
    mark("load")
    evaluate.evaluate(aligner, folder / "cache", evaluate.Config(snap="nearest"))


_STAGES: dict[str, Callable[[Mapping[str, Any], Path, _Mark], None]] = {
    "features": _features,
    "training": _training,
    "personalisation": _personalisation,
    "generation": _generation,
    "evaluation": _evaluation,
}


def _predict(world: World, config: Mapping[str, Any], folder: Path, stage: str) -> dict[str, Any]:
    """What the planner says of the stage that just ran; on a CPU, host and device are one."""
    platform = jax.default_backend()
    made = plan.make(config, str(folder / "cache"), Config(platform=platform))
    made = plan.read_corpus(made, str(folder / "cache"))
    encoder = made.shapes.encoder
    frames = encoder.family.num_frames(encoder.config, round(world.utterance_s * 16_000))
    work = {"max_frames": frames, "mean_frames": frames, "num_workers": os.cpu_count() or 1}
    if stage == "generation":
        work["new_tokens"] = NEW_TOKENS
    made = dataclasses.replace(made, shapes=with_work(made.shapes, **work))
    found = made.stage(stage)
    peak = found.total if platform == "cpu" else found.host
    return {
        "predicted_device_bytes": found.device.num_bytes,
        "predicted_host_bytes": peak.num_bytes,
        "moment": (found.total if platform == "cpu" else found.device).moment,
        "parts": [dataclasses.asdict(part) for part in found.parts],
    }


def find_worlds(kind: str, names: Sequence[str] = ()) -> dict[str, World]:
    """Worlds of a kind, all or some.

    Raises:
        ConfigError: unknown kind or name.
    """
    if kind not in WORLDS or (unknown := set(names) - set(WORLDS[kind])):
        raise ConfigError(
            f"unknown worlds {kind!r} {sorted(unknown) if kind in WORLDS else ''}; there are: "
            + "; ".join(f"{k}: {', '.join(v)}" for k, v in WORLDS.items() if v)
        )
    return {name: world for name, world in WORLDS[kind].items() if not names or name in names}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: predicted, measured and their ratio, of the device where it has memory of its own."""
    lines = [
        "| encoder | LLM | stage | device: predicted | measured | | host: predicted | measured | |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        device = _compared(row, "device", DEVICE_TOLERANCE)
        host = _compared(row, "host", HOST_TOLERANCE)
        names = f"{row['encoder']} | {row['llm']} {row['dtype']} | {row['stage']}"
        lines.append(f"| {names} | {device} | {host} |")
    return "\n".join(lines)


def _compared(row: Mapping[str, Any], where: str, tolerance: float) -> str:
    predicted, measured = row[f"predicted_{where}_bytes"], row[f"measured_{where}_bytes"]
    if measured is None:
        return f"{predicted / 1e6:,.0f} | not measured | "
    off = predicted / measured - 1
    mark = "" if abs(off) <= tolerance else " !"
    return f"{predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {off:+.1%}{mark}"
