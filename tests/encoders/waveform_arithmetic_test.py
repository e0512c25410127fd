"""What the wav2vec2 family does on the host: normalisation, frame arithmetic, config checks."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tiny_align_jax import testing
from tiny_align_jax.encoders import hubert, wav2vec2, wav2vec2_conformer, wavlm
from tiny_align_jax.types import AudioError, ConfigError
from tiny_align_jax.weights import folder, loading

NORMALIZING = wav2vec2.Config(normalize=True)


def test_normalisation_sees_the_utterance_only():
    rng = np.random.default_rng(0)
    waveform = (3 + 0.01 * rng.standard_normal(4000)).astype(np.float32)
    out = wav2vec2.preprocess(NORMALIZING, waveform, 8000)
    assert abs(out[:4000].mean()) < 1e-5 and abs(out[:4000].std() - 1) < 1e-3
    assert not out[4000:].any()


def test_without_normalisation_samples_stay():
    waveform = np.linspace(-0.5, 0.5, 4000, dtype=np.float32)
    out = wav2vec2.preprocess(wav2vec2.Config(normalize=False), waveform, 5000)
    np.testing.assert_array_equal(out[:4000], waveform)


def test_normalised_silence_is_silence():
    assert not wav2vec2.preprocess(NORMALIZING, np.zeros(1000), 1000).any()


@pytest.mark.parametrize("samples, frames", [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49)])
def test_num_frames_of_the_published_convolutions(samples, frames):
    assert wav2vec2.num_frames(wav2vec2.Config(), samples) == frames


def test_utterance_below_one_frame_is_refused():
    with pytest.raises(AudioError, match="399 samples is shorter than one encoder frame"):
        wav2vec2.preprocess(NORMALIZING, np.ones(399), 16_000)


@pytest.mark.parametrize(
    "module, name, default",
    [
        (wav2vec2, "wav2vec2", True),
        (hubert, "hubert", True),
        (wavlm, "wavlm", False),  # base: trained without
        (wavlm, "wavlm/large", True),
    ],
)
def test_preprocessor_decides_on_normalisation(module, name, default):
    hf = testing.ENCODER_CONFIGS[name]
    assert module.config_from_hf(hf).normalize is default
    for wanted in (True, False):
        assert module.config_from_hf(hf, {"do_normalize": wanted}).normalize is wanted


@pytest.mark.parametrize("wanted", [True, False])
def test_preprocessor_file_of_a_folder_is_read(tmp_path, wanted):
    hf = testing.ENCODER_CONFIGS["wavlm"]
    (tmp_path / "config.json").write_text(json.dumps(hf))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": wanted}))
    safetensors.numpy.save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    module, config = loading.encoder_config(folder.open_folder(tmp_path))
    assert module is wavlm and config.normalize is wanted


def test_other_sampling_rates_are_refused():
    with pytest.raises(ConfigError, match="sampling_rate=8000"):
        hubert.config_from_hf(testing.ENCODER_CONFIGS["hubert"], {"sampling_rate": 8000})


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-6},
        {"add_adapter": True},
        {"adapter_attn_dim": 16},
        {"conv_pos_batch_norm": True},
    ],
)
def test_values_that_are_not_implemented_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        wav2vec2.config_from_hf(testing.ENCODER_CONFIGS["wav2vec2"] | change)


def test_attributes_of_published_configs_are_known():
    """Keys of older transformers versions that lie in published config.json files."""
    old = {
        "architectures": ["WavLMForCTC"],
        "feat_extract_dropout": 0.0,
        "freeze_feat_extract_train": True,
        "gradient_checkpointing": False,
        "hidden_dropout_prob": 0.1,
        "mask_channel_length": 10,
        "mask_channel_min_space": 1,
        "mask_channel_selection": "static",
        "no_mask_time_overlap": False,
        "num_ctc_classes": 80,
        "num_feat_extract_layers": 7,
        "output_hidden_size": 768,
        "replace_prob": 0.5,
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "transformers_version": "4.15.0.dev0",
        "xvector_output_dim": 512,
    }
    config = wavlm.config_from_hf(testing.ENCODER_CONFIGS["wavlm"] | old)
    assert config == wavlm.config_from_hf(testing.ENCODER_CONFIGS["wavlm"])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"conv_dims": (8,)}, "one length from 1 to 7"),
        ({"conv_norm": "batch"}, "conv_norm='batch'"),
        ({"num_heads": 7, "position_groups": 5}, r"num_heads 7.*position_groups 5"),
    ],
)
def test_widths_that_cannot_work_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        wav2vec2.Config(**values)


def test_conformer_values_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match=r"absolute.*mish.*depthwise_kernel=4"):
        wav2vec2_conformer.Config(position="absolute", activation="mish", depthwise_kernel=4)
