"""The frozen encoder: alone on the device, and from audio files to the cache."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from tiny_align_jax import registry
from tiny_align_jax.benchmark_profile import kernels
from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.benchmark_timing import Row, count_flops, is_accelerator, measure, tree_bytes
from tiny_align_jax.features import extract, pipeline
from tiny_align_jax.types import SAMPLE_RATE_HZ, Utterance
from tiny_align_jax.weights import loading

_MADE_FILES = 64


def encoder(size: Size, size_name: str) -> list[Row]:
    """One call of the encoder on waveforms that lie on the device, spectrogram included."""
    module, config, params, dtype = _random(size)
    window = round(size.window_s * SAMPLE_RATE_HZ)
    waveforms = 0.1 * jax.random.normal(jax.random.key(0), (size.encoder_batch, window))
    num_samples = jnp.full((size.encoder_batch,), window, jnp.int32)
    model, layers = module.Encoder(config, dtype), (config.num_layers,)

    def encode(params, waveforms):
        return pipeline.encode(model, layers, params, waveforms, num_samples)

    frames = jax.eval_shape(encode, params, waveforms)
    times = measure(lambda: encode(params, waveforms))
    audio_s = size.encoder_batch * size.window_s
    return [
        Row(
            case="encoder",
            size=size_name,
            variant=f"batch {size.encoder_batch} x {size.window_s:g} s",
            flops=count_flops(encode, params, waveforms),
            num_bytes=tree_bytes((params, waveforms, frames)),
            dtype=jnp.dtype(dtype).name,
            facts={
                "times_real_time": audio_s / times["seconds"],
                "profile": kernels(lambda: encode(params, waveforms)),
            },
            **times,
        )
    ]


def corpus(size: Size, size_name: str, utterances: Sequence[Utterance] = ()) -> list[Row]:
    """Audio files to a new cache, everything included: hashing, decoding, loading, compiling, writing.

    Args:
        size: encoder. size_name: its name.
        utterances: what is encoded; noise of 10 s a file if empty.
    """
    module, config, params, dtype = _random(size)
    with tempfile.TemporaryDirectory(prefix="tiny_align_jax_benchmark_") as folder:
        chosen = utterances or _noise(Path(folder), size.window_s)
        kind = "corpus" if utterances else "noise"
        _, report = extract.extract(
            chosen,
            module,
            config,
            lambda: params,
            "random",
            window_s=size.window_s,
            cache_dir=Path(folder) / "cache",
            batch_size=size.encoder_batch,
            dtype=dtype,
            long="truncate",
        )
    return [
        Row(
            case="corpus",
            size=size_name,
            variant=f"{report.num_encoded} files of {kind}, {report.audio_s / 60:.1f} min",
            seconds=report.wall_s,
            facts={
                "audio_s": report.audio_s,
                "compile_s": report.compile_s,
                "times_real_time": report.audio_s / report.wall_s,
                "times_real_time_compiled": report.audio_s / (report.wall_s - report.compile_s),
            },
        )
    ]


def _random(size: Size):
    module = registry.resolve("encoders", size.encoder["model_type"])
    config = module.config_from_hf(size.encoder)
    dtype = jnp.bfloat16 if is_accelerator() else jnp.float32
    shapes = loading.encoder_shapes(module, config)
    rng = np.random.default_rng(0)
    make = lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), dtype)  # noqa: E731
    return module, config, jax.tree.map(make, shapes), dtype


def _noise(folder: Path, seconds: float) -> list[Utterance]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(_MADE_FILES):
        path = folder / f"{i}.wav"
        samples = 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ), np.float32)
        soundfile.write(path, samples, SAMPLE_RATE_HZ)
        made.append(Utterance(str(i), str(path), "noise", "nobody"))
    return made
