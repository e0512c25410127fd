"""Times the baseline at the shapes of `tiny_align_jax.benchmark_sizes`, one case and mode a process.

    python -m third_party.torch_baseline.timing --case=embedlink --mode=reduce-overhead --size=llama1b --json=row.json

Random weights and frames; a corpus on the device, batches gathered from it, augmentation and dropout on: the work
of the JAX benchmark's step. Prints one JSON object: `median_ms` of one step (decode: of one token of every row) with
the 10th and 90th percentile, `compile_s` (first call), `peak_device_mb`, `tokens_per_s` (decode).
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from third_party.torch_baseline import llm as llm_lib
from third_party.torch_baseline import objectives
from third_party.torch_baseline.bridgeformer import BridgeFormer
from third_party.torch_baseline.encoder import Encoder
from third_party.torch_baseline.step import MODES, Model, Trainer
from tiny_align_jax import benchmark_sizes, registry
from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.data import augment
from tiny_align_jax.train import optimizer
from tiny_align_jax.types import SAMPLE_RATE_HZ

CASES = ("embedlink", "embedlink_ctc", "next_token", "decode", "encoder")
_TABLE_RMS = 0.02
_CORPUS = 4  # utterances on the device, as multiples of the batch
_NUM_STEPS = 1000  # of the learning rate's schedule


def main() -> None:
    arguments = _arguments()
    if arguments.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32, which JAX uses, too
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    size = benchmark_sizes.find(arguments.size)
    run = {"decode": decode, "encoder": encode}.get(arguments.case, step)
    row = run(size, arguments)
    row = {
        "case": arguments.case,
        "mode": arguments.mode,
        "size": arguments.size,
        **row,
        **_peak_memory(),
        "machine": _machine(arguments.device),
    }
    text = json.dumps(row)
    print(text, flush=True)
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(text + "\n")


def _arguments() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--size", choices=tuple(benchmark_sizes.SIZES), default="tiny")
    parser.add_argument("--batch_size", type=int, default=0, help="0: the size's own")
    parser.add_argument("--rows", type=int, default=0, help="rows of the table; 0: the whole table")
    parser.add_argument("--remat", action="store_true", help="next_token: recompute activations")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--repeats", type=int, default=30, help="measurements after warm-up")
    parser.add_argument(
        "--budget_s", type=float, default=4.0, help="no new measurement after so long"
    )
    parser.add_argument("--json", default="", help="also write the result to this file")
    parser.add_argument(
        "--gate",
        default="",
        help="measure once this file exists; FILE.ready says that all is compiled, so that many processes "
        "compile side by side and measure one at a time",
    )
    return parser.parse_args()


def step(size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training step."""
    shape = size.embedlink_ctc if arguments.case == "embedlink_ctc" else size.embedlink
    batch_size = arguments.batch_size or shape.batch_size
    num_rows = arguments.rows or size.llm["vocab_size"]
    # Only while tensors are made: under this context every later call of torch would be slower.
    with torch.device(arguments.device):
        model = _model(size, shape, num_rows, arguments)
        next_batch = _corpus(size, shape, batch_size, num_rows)
    trainer = Trainer(model, vars(optimizer.Config()), _NUM_STEPS, arguments.mode)
    steps = 20 if arguments.device.startswith("cuda") else 1
    loss = [torch.zeros(())]

    def call() -> None:
        for _ in range(steps):
            loss[0] = trainer(next_batch())

    times = measure(call, arguments, steps)
    trained = sum(p.numel() for p in model.parameters())
    return {
        "batch_size": batch_size,
        "rows": num_rows,
        "remat": arguments.remat,
        "trainable_params": trained,
        "loss": float(loss[0]),
        **times,
    }


def _model(
    size: Size, shape: benchmark_sizes.StepShape, num_rows: int, arguments: argparse.Namespace
) -> Model:
    """Projector and objective of the case, random."""
    dtype, width = getattr(torch, arguments.dtype), size.llm["hidden_size"]
    values = _defaults("projectors", "bridgeformer") | dict(shape.projector)
    projector = BridgeFormer(values, size.features_dim, width, _TABLE_RMS)
    own = _defaults("objectives", arguments.case)
    if arguments.case == "next_token":
        ids = np.arange(size.prefix_tokens + size.suffix_tokens) + 5
        around = ids[: size.prefix_tokens], ids[size.prefix_tokens :]
        llm = random_llm(size, arguments.device, dtype)
        objective: Any = objectives.NextToken(
            llm, np.arange(num_rows), *around, remat=arguments.remat
        )
    elif arguments.case == "embedlink":
        objective = objectives.EmbedLink(own, _TABLE_RMS * torch.randn(num_rows, width))
    else:
        own |= {"logits_dtype": arguments.dtype}
        objective = objectives.EmbedLinkCTC(own, _TABLE_RMS * torch.randn(num_rows, width))
    return Model(projector, objective, vars(augment.Config()), dtype).train()


def decode(size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    """One token of every row: a whole answer less its prompt, over the tokens drawn."""
    if arguments.mode == "cuda-graph":
        raise SystemExit("decode has no mode cuda-graph; reduce-overhead is CUDA graphs here")
    shape = size.decode
    batch_size = arguments.batch_size or shape.batch_sizes[0]
    llm = random_llm(size, arguments.device, getattr(torch, arguments.dtype))
    generator = llm_lib.Generator(
        llm, [size.llm["vocab_size"] - 1], max_new_tokens=shape.new_tokens, mode=arguments.mode
    )
    tail = torch.randn(batch_size, shape.prompt_tokens, size.llm["hidden_size"])
    tails = list((_TABLE_RMS * tail).to(llm.device, llm.dtype))
    whole = measure(lambda: generator.generate_batch(tails, stop_early=False), arguments)
    prompt = measure(lambda: generator.prefill(tails), arguments)
    drawn = shape.new_tokens - 1
    per_token = {
        name: (whole[name] - prompt["median_ms"]) / drawn
        for name in ("median_ms", "low_ms", "high_ms")
    }
    return {
        "batch_size": batch_size,
        **per_token,
        "repeats": whole["repeats"],
        "compile_s": whole["compile_s"],
        "prompt_ms": prompt["median_ms"],
        "tokens_per_s": 1e3 * batch_size / per_token["median_ms"],
        "tokens_per_s_with_prompt": 1e3 * batch_size * shape.new_tokens / whole["median_ms"],
    }


@torch.no_grad()
def encode(size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    """One call of the frozen encoder on waveforms that lie on the device, spectrogram included."""
    if arguments.mode == "cuda-graph":
        raise SystemExit("encoder has no mode cuda-graph; reduce-overhead is CUDA graphs here")
    batch_size = arguments.batch_size or size.encoder_batch
    num_samples = round(size.window_s * SAMPLE_RATE_HZ)
    with torch.device(arguments.device):
        encoder = Encoder(size.encoder, num_samples)
        waveform_BS = 0.1 * torch.randn(batch_size, num_samples)
    encoder.model.to(getattr(torch, arguments.dtype))
    call = llm_lib.compiled(encoder.forward, arguments.mode)
    times = measure(lambda: call(waveform_BS), arguments)
    audio_s = batch_size * size.window_s
    return {
        "batch_size": batch_size,
        **times,
        "times_real_time": 1e3 * audio_s / times["median_ms"],
    }


def measure(
    call: Callable[[], Any], arguments: argparse.Namespace, count: int = 1
) -> dict[str, Any]:
    """Milliseconds of one of the `count` units of work of `call`; at least three measurements."""
    start_s = time.perf_counter()
    call()
    _wait(arguments.device)
    first_s = time.perf_counter() - start_s
    for _ in range(2):  # CUDA graphs are recorded in the second and third call
        call()
    _wait(arguments.device)
    if arguments.gate:
        _wait_at(Path(arguments.gate))
    times: list[float] = []
    began_s = time.perf_counter()
    while len(times) < 3 or (
        len(times) < arguments.repeats and time.perf_counter() - began_s < arguments.budget_s
    ):
        start_s = time.perf_counter()
        call()
        _wait(arguments.device)
        times.append(1e3 * (time.perf_counter() - start_s) / count)
    low, median, high = (float(x) for x in np.quantile(times, (0.1, 0.5, 0.9)))
    compile_s = max(0.0, first_s - 1e-3 * median * count)
    return {
        "median_ms": median,
        "low_ms": low,
        "high_ms": high,
        "repeats": len(times),
        "compile_s": compile_s,
    }


def random_llm(size: Size, device: str, dtype: torch.dtype) -> Any:
    """A frozen LLM of random weights, made on the device."""
    values = {k: v for k, v in size.llm.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(size.llm["model_type"], **values)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


def _corpus(
    size: Size, shape: benchmark_sizes.StepShape, batch_size: int, num_rows: int
) -> Callable[[], objectives.Batch]:
    """Draws batches from a corpus on the device."""
    num = _CORPUS * batch_size
    features_NTE = torch.randn(num, shape.num_frames, size.features_dim).half()
    targets_NL = torch.randint(1, num_rows, (num, shape.num_targets))
    index_KB = torch.randint(0, num, (64, batch_size))
    frames_B, count_B = torch.tensor([[shape.num_frames], [shape.num_targets]]).expand(
        2, batch_size
    )
    host = {"host_num_frames_B": frames_B.cpu(), "host_num_targets_B": count_B.cpu()}
    weight_B = torch.ones(batch_size)
    number = 0

    def next_batch() -> objectives.Batch:
        nonlocal number
        index_B = index_KB[number % len(index_KB)]
        number += 1
        return objectives.Batch(
            features_NTE[index_B], frames_B, targets_NL[index_B], count_B, weight_B, **host
        )

    return next_batch


def _defaults(family: str, name: str) -> dict[str, Any]:
    return dict(vars(registry.resolve(family, name).Config()))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _wait_at(gate: Path) -> None:
    gate.with_name(gate.name + ".ready").touch()
    while not gate.exists():
        time.sleep(0.05)


def _peak_memory() -> dict[str, float | None]:
    if not torch.cuda.is_available():
        return {"peak_device_mb": None, "peak_reserved_mb": None}
    return {
        "peak_device_mb": torch.cuda.max_memory_allocated() / 1e6,
        "peak_reserved_mb": torch.cuda.max_memory_reserved() / 1e6,  # pools of CUDA graphs, too
    }


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    return (
        f"{name or device}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
