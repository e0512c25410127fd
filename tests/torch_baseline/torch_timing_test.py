"""The timing module's rows, at a test's size."""

import argparse
import threading
import time

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers

from third_party.torch_baseline import timing
from third_party.torch_baseline.encoder import Encoder
from tiny_align_jax import benchmark_sizes

pytestmark = pytest.mark.parity
SIZE = benchmark_sizes.find("tiny")


def arguments(case, **values):
    default = {
        "mode": "eager",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 0,
        "rows": 0,
        "remat": False,
        "repeats": 3,
        "budget_s": 0.0,
        "gate": "",
    }
    return argparse.Namespace(case=case, **default | values)


@pytest.mark.parametrize("case", ["embedlink", "embedlink_ctc", "next_token"])
def test_steps_run_at_the_benchmarks_shapes_and_learn_something_finite(case):
    row = timing.step(SIZE, arguments(case, rows=SIZE.seen_rows, remat=case == "next_token"))
    assert row["batch_size"] == 2 and row["rows"] == 64 and row["repeats"] == 3
    assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
    assert 0 < row["loss"] < 100 and row["trainable_params"] > 1000


def test_decoding_counts_tokens_of_all_rows():
    row = timing.decode(SIZE, arguments("decode", batch_size=3))
    assert row["tokens_per_s"] == pytest.approx(3e3 / row["median_ms"])
    assert row["prompt_ms"] > 0 and row["batch_size"] == 3


def test_decoding_has_no_graph_of_all():
    with pytest.raises(SystemExit, match="reduce-overhead"):
        timing.decode(SIZE, arguments("decode", mode="cuda-graph"))


def test_the_encoder_reads_the_spectrogram_of_transformers():
    row = timing.encode(SIZE, arguments("encoder"))
    audio_s = SIZE.encoder_batch * SIZE.window_s
    assert row["times_real_time"] == pytest.approx(1e3 * audio_s / row["median_ms"])
    waveform = 0.1 * np.random.default_rng(0).standard_normal((2, 16_000), np.float32)
    extract = transformers.WhisperFeatureExtractor(chunk_length=1)
    wanted = extract(list(waveform), sampling_rate=16_000, return_tensors="pt").input_features
    encoder = Encoder(SIZE.encoder, 16_000)
    torch.testing.assert_close(
        encoder.log_mel(torch.from_numpy(waveform)), wanted, atol=1e-4, rtol=0
    )
    assert encoder(torch.from_numpy(waveform)).shape == (2, 50, SIZE.features_dim)


def test_measures_only_once_its_gate_opens(tmp_path):
    gate, calls = tmp_path / "gate", []
    gated = arguments("embedlink", gate=str(gate))
    worker = threading.Thread(target=timing.measure, args=(lambda: calls.append(1), gated))
    worker.start()
    while not (tmp_path / "gate.ready").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(calls) == 3  # compiled and warm, nothing measured
    gate.touch()
    worker.join()
    assert len(calls) == 6
