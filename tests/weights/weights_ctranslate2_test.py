"""CTranslate2 Whisper files written by hand: names, values, config, damage."""

import json

import numpy as np
import pytest

from tests.weights import writers
from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights import canonical, ctranslate2
from tiny_align_jax.weights.safetensors import SafetensorsSource


def test_tensors_come_back_under_hugging_face_names(tmp_path):
    arrays = writers.write_ct2_folder(tmp_path)
    source = ctranslate2.CTranslate2Source(tmp_path / "model.bin")
    assert source.names() == tuple(sorted(arrays))
    for name, array in arrays.items():
        assert source.shape(name) == array.shape and source.dtype(name) == array.dtype
        np.testing.assert_array_equal(source.read(name), array, err_msg=name)
    table = "model.decoder.embed_tokens.weight"
    np.testing.assert_array_equal(source.rows(table, [3, 1]), arrays[table][[3, 1]])
    # a part of a fused projection starts at its own rows
    value = "model.decoder.layers.1.encoder_attn.v_proj.weight"
    np.testing.assert_array_equal(source.rows(value, [0]), arrays[value][:1])


@pytest.mark.parity
def test_names_and_shapes_are_transformers_own(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    writers.write_ct2_folder(tmp_path)
    source = ctranslate2.CTranslate2Source(tmp_path / "model.bin")
    config = transformers.WhisperConfig(**source.config(writers.WHISPER_TOKENIZER))
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(config)
    expected = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "proj_out.weight"}
    assert {n: source.shape(n) for n in source.names()} == expected


def test_config_is_read_from_shapes_and_tokenizer(tmp_path):
    writers.write_ct2_folder(tmp_path)
    config = ctranslate2.CTranslate2Source(tmp_path / "model.bin").config(writers.WHISPER_TOKENIZER)
    expected = {
        "model_type": "whisper",
        "d_model": 8,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "num_mel_bins": 80,
        "vocab_size": 20,
        "max_source_positions": 50,
        "max_target_positions": 12,
        "eos_token_id": 18,
        "decoder_start_token_id": 19,
    }
    assert {k: config[k] for k in expected} == expected


def test_canonical_folder(tmp_path):
    arrays = writers.write_ct2_folder(tmp_path / "in")
    (tmp_path / "out").mkdir()
    canonical.from_ctranslate2(tmp_path / "in" / "model.bin", tmp_path / "out")
    source = SafetensorsSource(tmp_path / "out")
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array)
        assert source.dtype(name) == np.float16
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3]}


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "model.bin"
    writers.write_ct2_folder(tmp_path)
    whole = path.read_bytes()
    aliases = 4 + 2 * 2 + len("decoder/projection/weight") + len("decoder/embeddings/weight") + 2
    for length in [*range(0, 200), *range(200, len(whole) - aliases, 997)]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"truncated|corrupt"):
            ctranslate2.CTranslate2Source(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    with pytest.raises(AssetError, match="does not exist"):
        ctranslate2.CTranslate2Source(path)
    variables = writers.as_ct2_variables(writers.whisper_arrays(np.random.default_rng(0)))
    writers.write_ct2(path, variables, spec="TransformerSpec")
    with pytest.raises(WeightsError, match="TransformerSpec"):
        ctranslate2.CTranslate2Source(path)
    writers.write_ct2(path, variables, version=99)
    with pytest.raises(WeightsError, match="version 99"):
        ctranslate2.CTranslate2Source(path)


def test_integer_quantisation_is_refused_with_the_way_out(tmp_path):
    variables = writers.as_ct2_variables(writers.whisper_arrays(np.random.default_rng(0)))
    variables["encoder/conv1/weight"] = np.ones((8, 80, 3), np.int8)
    writers.write_ct2(tmp_path / "model.bin", variables)
    with pytest.raises(WeightsError, match=r"encoder/conv1/weight: int8.*float16"):
        ctranslate2.CTranslate2Source(tmp_path / "model.bin")


def test_unknown_variables_are_listed(tmp_path):
    variables = writers.as_ct2_variables(writers.whisper_arrays(np.random.default_rng(0)))
    variables |= {"encoder/extra/weight": np.ones((2, 2), "f2"), "odd": np.ones(3, "f2")}
    writers.write_ct2(tmp_path / "model.bin", variables)
    with pytest.raises(WeightsError, match=r"2 unknown variable.*encoder/extra/weight.*odd"):
        ctranslate2.CTranslate2Source(tmp_path / "model.bin")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    writers.write_ct2_folder(tmp_path)
    with pytest.raises(WeightsError, match="startoftranscript"):
        ctranslate2.CTranslate2Source(tmp_path / "model.bin").config({"added_tokens": []})
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(AssetError, match=r"no tokenizer\.json"):
        canonical.from_ctranslate2(tmp_path / "model.bin", tmp_path)
