"""The Whisper encoder equals transformers' torch model, from samples to every hidden state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import encoders_reference as reference  # noqa: E402

from tiny_align_jax.encoders import _log_mel  # noqa: E402

pytestmark = pytest.mark.parity

WINDOW = 32_000  # 100 frames, the tiny position table
FLOAT32_TOLERANCE = 1e-4
# Relative to the RMS of a hidden state: bfloat16 keeps 8 bits (0.4 % a rounding); 0.03 measured.
BFLOAT16_TOLERANCE = 0.05


def reference_log_mel(waveforms, num_mels, window):
    """transformers' features [B, num_mels, F] of waveforms padded to `window` samples."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    return extractor(
        waveforms, max_length=window, sampling_rate=16_000, return_tensors="pt"
    ).input_features


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("window", [480_000, 163_840])
def test_log_mel_equals_the_reference(num_mels, window):
    waveforms = reference.noise(window - 60_000, window)
    padded = np.stack([np.pad(w, (0, window - w.size)) for w in waveforms])
    ours = jax.jit(_log_mel.log_mel, static_argnums=1)(padded, num_mels)
    theirs = reference_log_mel(waveforms, num_mels, window).numpy().swapaxes(1, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", reference.WHISPER_CASES)
def test_every_hidden_state_equals_the_reference(name):
    case = reference.build(name)
    waveforms = reference.noise(20_111, WINDOW)
    ours = case.hidden_states(waveforms, WINDOW)
    theirs = case.reference(reference_log_mel(waveforms, case.config.num_mels, WINDOW))
    assert len(ours) == case.config.num_layers + 1
    for h, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(h, expected, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("window", [19_200, 10_001])
def test_short_window_uses_the_first_rows_of_the_position_table(window):
    case = reference.build("whisper")
    waveforms = reference.noise(window - 3000, window)
    ours = case.hidden_states(waveforms, window)[-1]
    frames = case.module.num_frames(case.config, window)
    assert ours.shape[1] == frames

    short = transformers.WhisperConfig.from_dict(
        case.model.config.to_dict() | {"max_source_positions": frames}
    )
    encoder = transformers.WhisperModel(short).eval().encoder
    tensors = dict(case.model.model.encoder.state_dict())
    tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:frames]
    encoder.load_state_dict(tensors)
    features = reference_log_mel(waveforms, case.config.num_mels, frames * 320)
    with torch.no_grad():
        theirs = encoder(features).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, theirs, atol=FLOAT32_TOLERANCE)


def test_bfloat16_stays_near_the_reference():
    case = reference.build("whisper")
    waveforms = reference.noise(WINDOW)
    ours = case.hidden_states(waveforms, WINDOW, jnp.bfloat16)
    theirs = case.reference(reference_log_mel(waveforms, case.config.num_mels, WINDOW))
    for h, expected in zip(ours, theirs, strict=True):
        rms = np.sqrt(np.mean(np.square(expected)))
        assert np.sqrt(np.mean(np.square(h - expected))) < BFLOAT16_TOLERANCE * rms


def test_bare_tensor_names_give_the_same_tree():
    case = reference.build("whisper")
    bare = case.model.model.state_dict()
    assert "encoder.conv1.weight" in bare and "model.encoder.conv1.weight" not in bare
    params = reference.load(case.module, case.config, bare)
    jax.tree.map(np.testing.assert_array_equal, params, case.params)
