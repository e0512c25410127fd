"""Real Whisper weights on a real recording: our frames equal transformers' from the same folder."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from tiny_align_jax.data import audio  # noqa: E402
from tiny_align_jax.weights import folder as folders  # noqa: E402
from tiny_align_jax.weights import loading  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.weights, pytest.mark.data]

RECORDING = "speechocean762/WAVE/SPEAKER0003/000030012.ogg"
# Trained Whisper has activations in the hundreds before its last norm; its output is of order 1.
TOLERANCE = 1e-3


def recording() -> np.ndarray:
    path = pathlib.Path(os.environ.get("TINY_ALIGN_DATA", "")) / RECORDING
    if not path.is_file():
        pytest.skip("set TINY_ALIGN_DATA to a folder that holds speechocean762 (OpenSLR 101)")
    return audio.read_audio(str(path))


def open_asset(name: str) -> folders.ModelFolder:
    cache = os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align")
    path = pathlib.Path(cache).expanduser() / name
    if not path.is_dir():
        pytest.skip(f"not fetched: python -m experiments.fetch_assets --assets={name}")
    return folders.open_folder(path)


@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
@pytest.mark.parametrize("window_s", [30.0, 10.24])
def test_frames_equal_transformers(name, window_s):
    waveform, window = recording(), round(window_s * 16_000)
    model_folder = open_asset(name)
    loaded = loading.load_encoder(model_folder)
    inputs = loaded.module.preprocess(loaded.config, waveform, window)[None]
    encoder = loaded.module.Encoder(loaded.config, jnp.float32)
    encode = jax.jit(lambda params, x: encoder.apply({"params": params}, x, None))
    ours = encode(loaded.params, inputs)
    theirs = reference(model_folder.path, waveform, window)
    assert len(ours) == len(theirs)
    for layer, (h, expected) in enumerate(zip(ours, theirs, strict=True)):
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(np.asarray(h) - expected).max() < TOLERANCE * scale, layer
    frames = loaded.module.num_frames(loaded.config, waveform.size)
    spread = np.asarray(ours[-1])[0, :frames].std(axis=0).mean()
    assert spread > 0.1, "frames hardly differ: nothing was heard"


def reference(path: pathlib.Path, waveform: np.ndarray, window: int) -> list[np.ndarray]:
    """transformers' hidden states, its position table cut to the window."""
    config = transformers.WhisperConfig.from_pretrained(path)
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    features = extractor(
        waveform, max_length=window, sampling_rate=16_000, return_tensors="pt"
    ).input_features
    full = transformers.WhisperModel.from_pretrained(path, dtype=torch.float32).eval().encoder
    config.max_source_positions = window // 320
    tensors = dict(full.state_dict())
    tensors["embed_positions.weight"] = tensors["embed_positions.weight"][: window // 320]
    short = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    short.load_state_dict(tensors)
    with torch.no_grad():
        out = short(features, output_hidden_states=True)
    return [h.numpy() for h in (*out.hidden_states[:-1], out.last_hidden_state)]
