"""wav2vec2-like encoders equal transformers' torch models, for every variant and every layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import encoders_reference as reference  # noqa: E402

from tiny_align_jax.encoders import wavlm  # noqa: E402
from tiny_align_jax.weights import convert  # noqa: E402

pytestmark = pytest.mark.parity

WINDOW = 4000
SIZES = (2711, 4000, 1500)
FLOAT32_TOLERANCE = 1e-4
# Relative to the RMS of a hidden state: bfloat16 keeps 8 bits (0.4 % a rounding); 0.03 measured.
# This random network turns 0.5 % of noise on its input into 4-12 % on its output, in float32.
BFLOAT16_TOLERANCE = {"wav2vec2_conformer": 0.2}
BFLOAT16_DEFAULT_TOLERANCE = 0.05
GROUP_NORM_CASES = tuple(
    name
    for name in reference.WAVEFORM_CASES
    if reference.testing.ENCODER_CONFIGS[name]["feat_extract_norm"] == "group"
)
LAYER_NORM_CASES = tuple(sorted(set(reference.WAVEFORM_CASES) - set(GROUP_NORM_CASES)))


def single_reference(case, waveform):
    """Hidden states of one unpadded utterance through transformers' extractor and model."""
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=case.config.normalize)
    inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    return case.reference(inputs)


@pytest.mark.parametrize("name", reference.WAVEFORM_CASES)
def test_padded_batch_equals_unpadded_reference(name):
    case = reference.build(name)
    waveforms = reference.noise(*SIZES)
    ours = case.hidden_states(waveforms, WINDOW)
    assert len(ours) == case.config.num_layers + 1
    for row, waveform in enumerate(waveforms):
        frames = case.module.num_frames(case.config, waveform.size)
        theirs = single_reference(case, waveform)
        assert theirs[0].shape[1] == frames
        assert theirs[-1][0].std(axis=0).mean() > 0.02, "frames hardly differ: nothing is tested"
        for layer, (h, expected) in enumerate(zip(ours, theirs, strict=True)):
            error = np.abs(h[row, :frames] - expected[0]).max()
            assert error < FLOAT32_TOLERANCE, (row, layer)


@pytest.mark.parametrize("name", reference.WAVEFORM_CASES)
def test_bfloat16_stays_near_the_reference(name):
    case = reference.build(name)
    tolerance = BFLOAT16_TOLERANCE.get(name, BFLOAT16_DEFAULT_TOLERANCE)
    waveform = reference.noise(*SIZES)[1]
    ours = case.hidden_states([waveform], WINDOW, jnp.bfloat16)
    for h, expected in zip(ours, single_reference(case, waveform), strict=True):
        rms = np.sqrt(np.mean(np.square(expected)))
        assert np.sqrt(np.mean(np.square(h - expected))) < tolerance * rms


@pytest.mark.parametrize(
    "name", [n for n in LAYER_NORM_CASES if not n.startswith("wav2vec2_conformer")]
)
def test_layer_norm_variants_equal_the_masked_reference_batch(name):
    """With its attention mask, transformers' batch of a layer-norm model is padding-proof too."""
    case = reference.build(name)
    waveforms = reference.noise(*SIZES)
    ours = case.hidden_states(waveforms, WINDOW)[-1]
    theirs = masked_batch_reference(case, waveforms)
    for row, waveform in enumerate(waveforms):
        frames = case.module.num_frames(case.config, waveform.size)
        assert np.abs(ours[row, :frames] - theirs[row, :frames]).max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", GROUP_NORM_CASES)
def test_group_norm_reference_depends_on_padding_and_ours_does_not(name):
    """The documented difference: their norm over time sees the padding."""
    case = reference.build(name)
    waveforms = reference.noise(*SIZES)
    ours = case.hidden_states(waveforms, WINDOW)[-1]
    theirs = masked_batch_reference(case, waveforms)
    frames = case.module.num_frames(case.config, SIZES[2])
    single = single_reference(case, waveforms[2])[-1][0]
    assert np.abs(theirs[2, :frames] - single).max() > 0.01
    assert np.abs(ours[2, :frames] - single).max() < FLOAT32_TOLERANCE


def masked_batch_reference(case, waveforms):
    """Final output of transformers' padded batch with its attention mask."""
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=case.config.normalize, return_attention_mask=True
    )
    batch = extractor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")
    return case.reference(batch.input_values, attention_mask=batch.attention_mask)[-1]


@pytest.mark.parametrize("name", ["wav2vec2", "hubert/large", "wavlm"])
def test_ctc_head_gives_the_references_logits(name):
    case = reference.build(name)
    waveforms = reference.noise(*SIZES)
    head = nn.Dense(case.model.config.vocab_size)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, case.config.dim)))
    source = reference.TorchSource(case.model.state_dict())
    params = convert.convert(source, case.module.CTC_HEAD_MAP, shapes["params"], jnp.float32)
    ours = head.apply({"params": params}, case.hidden_states(waveforms, WINDOW)[-1][1:2])
    inputs = case.module.preprocess(case.config, waveforms[1], WINDOW)
    with torch.no_grad():
        theirs = case.model(torch.from_numpy(inputs)[None]).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm/large"])
def test_old_weight_norm_names_and_bare_tensors_give_the_same_tree(name):
    case = reference.build(name)
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for key, tensor in case.model.base_model.state_dict().items()
    }
    assert any(key.endswith("weight_g") for key in old)
    assert not any(key.startswith(f"{case.model.base_model_prefix}.") for key in old)
    jax.tree.map(
        np.testing.assert_array_equal, reference.load(case.module, case.config, old), case.params
    )


def test_pretraining_heads_are_known_and_left_out():
    case = reference.build("wav2vec2")
    model = transformers.Wav2Vec2ForPreTraining(case.model.config)
    heads = {
        key: tensor for key, tensor in model.state_dict().items() if not key.startswith("wav2vec2.")
    }
    assert {key.split(".")[0] for key in heads} == {"quantizer", "project_hid", "project_q"}
    params = reference.load(case.module, case.config, case.model.state_dict() | heads)
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


@pytest.mark.parametrize("buckets, distance, frames", [(320, 800, 1600), (32, 100, 300)])
def test_distance_buckets_equal_the_reference(buckets, distance, frames):
    attention = transformers.models.wavlm.modeling_wavlm.WavLMAttention(
        8, 2, num_buckets=buckets, max_distance=distance
    )
    config = wavlm.Config(num_buckets=buckets, max_distance=distance)
    theirs = attention._relative_positions_bucket(torch.arange(1 - frames, frames))
    np.testing.assert_array_equal(wavlm.distance_buckets(config, frames), theirs.numpy())
