"""GGUF files written by gguf's own writer, with llama.cpp's changes applied by the test."""

import gguf
import numpy as np
import pytest

from tests.weights import writers
from tests.weights.writers import Kind
from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights.gguf import GGUFSource
from tiny_align_jax.weights.gguf_config import config_json

_RNG = np.random.default_rng(0)


def _rounded(array: np.ndarray, kind: Kind) -> np.ndarray:
    """What a stored tensor can be at best: quantised and back, in the order of the argument."""
    if array.ndim == 1:
        return array
    return gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind).reshape(array.shape)


@pytest.mark.parametrize(
    "kind",
    [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0],
    ids=lambda kind: kind.name,
)
def test_values_and_rows_come_back_in_hugging_face_order(tmp_path, kind):
    path = tmp_path / "m.gguf"
    arrays = writers.write_llama_gguf(path, kind)
    source = GGUFSource(path)
    assert source.names() == tuple(sorted(arrays))
    for name, array in arrays.items():
        expected = _rounded(array, kind)
        found = source.read(name)
        assert source.shape(name) == array.shape and found.dtype == source.dtype(name)
        np.testing.assert_array_equal(found.astype(np.float32), expected, err_msg=name)
        if array.ndim == 2:
            rows = source.rows(name, [7, 0, 31]).astype(np.float32)
            np.testing.assert_array_equal(rows, expected[[7, 0, 31]], err_msg=name)
            assert source.is_quantised(name) == kind.name.startswith("Q")


def test_raw_blocks_dequantise_to_the_same_matrix(tmp_path):
    writers.write_llama_gguf(tmp_path / "m.gguf", Kind.Q4_1)
    source = GGUFSource(tmp_path / "m.gguf")
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        raw = source.raw(name)
        assert raw.data.dtype == np.uint8 and raw.kind == Kind.Q4_1
        whole = gguf.quants.dequantize(raw.data, raw.kind).reshape(raw.shape)
        np.testing.assert_array_equal(whole, source.read(name))


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K], ids=lambda kind: kind.name)
def test_k_quants_are_read_row_by_row(tmp_path, kind):
    """gguf cannot write these, so the blocks are random bits with harmless scales."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = _RNG.integers(0, 255, (5, 2, block_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    where = slice(0, 2) if kind == Kind.Q4_K else slice(-2, None)
    blocks[..., where] = scale
    if kind == Kind.Q4_K:
        blocks[..., 2:4] = scale  # the second scale, of the minima
    stored = blocks.reshape(5, -1)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in writers.LLAMA_METADATA.items():
        writers._add(writer, f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "m.gguf")
    expected = gguf.quants.dequantize(stored, kind)
    assert expected.shape == (5, 2 * block_size) and np.isfinite(expected).all()
    np.testing.assert_array_equal(source.read("model.embed_tokens.weight"), expected)
    np.testing.assert_array_equal(
        source.rows("model.embed_tokens.weight", [4, 2]), expected[[4, 2]]
    )


@pytest.mark.parity
def test_names_and_shapes_are_transformers_own(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    arrays = writers.write_llama_gguf(tmp_path / "m.gguf")
    config = config_json(GGUFSource(tmp_path / "m.gguf"))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    expected = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    assert {n: a.shape for n, a in arrays.items()} == expected


def test_config_of_the_llama_architecture(tmp_path):
    writers.write_llama_gguf(tmp_path / "m.gguf")
    config = config_json(GGUFSource(tmp_path / "m.gguf"))
    expected = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "vocab_size": 300,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "eos_token_id": 2,
    }
    assert {k: config[k] for k in expected} == expected


def _write(path, architecture="llama", extra_metadata=None, extra_tensors=None, heads=None):
    arrays = writers.llama_arrays(_RNG)
    tensors = writers.as_gguf_tensors(arrays, Kind.F32, heads) | (extra_tensors or {})
    metadata = writers.LLAMA_METADATA | (extra_metadata or {})
    writers.write_gguf(path, architecture, metadata, tensors)
    return arrays


def test_untied_head_and_biases(tmp_path):
    head, bias = _RNG.standard_normal((96, 64), "f4"), _RNG.standard_normal(64, "f4")
    extra = {
        "output.weight": (head, Kind.F32),
        "blk.0.attn_q.bias": (writers.permute(bias, 4), Kind.F32),
    }
    _write(tmp_path / "m.gguf", extra_tensors=extra)
    source = GGUFSource(tmp_path / "m.gguf")
    np.testing.assert_array_equal(source.read("lm_head.weight"), head)
    np.testing.assert_array_equal(source.read("model.layers.0.self_attn.q_proj.bias"), bias)
    config = config_json(source)
    assert config["tie_word_embeddings"] is False and config["attention_bias"] is True


def test_llama3_rotary_scaling_is_recovered_from_its_divisors(tmp_path):
    metadata = {"rope.freq_base": 500000.0, "rope.dimension_count": 16}
    rope = {"factor": 32.0, "low": 1.0, "high": 4.0, "old": 8192}
    divisors = np.array(
        [_llama3_divisor(500000.0 ** (-i / 16), rope) for i in range(0, 16, 2)], "f4"
    )
    assert divisors[0] == 1 and divisors[-1] == 32 and ((divisors > 1) & (divisors < 32)).any()
    _write(tmp_path / "m.gguf", "llama", metadata, {"rope_freqs.weight": (divisors, Kind.F32)})
    source = GGUFSource(tmp_path / "m.gguf")
    assert config_json(source)["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert "rope_freqs.weight" not in source.names()
    wrong = {"rope_freqs.weight": (divisors * 1.5, Kind.F32)}
    _write(tmp_path / "w.gguf", "llama", metadata, wrong)
    with pytest.raises(WeightsError, match="rope_freqs"):
        config_json(GGUFSource(tmp_path / "w.gguf"))


def _llama3_divisor(frequency: float, rope: dict[str, float]) -> float:
    """Meta's own formulation, one frequency at a time (llama-models, apply_scaling)."""
    wavelength = 2 * np.pi / frequency
    if wavelength < rope["old"] / rope["high"]:
        return 1.0
    if wavelength > rope["old"] / rope["low"]:
        return rope["factor"]
    smooth = (rope["old"] / wavelength - rope["low"]) / (rope["high"] - rope["low"])
    return 1 / ((1 - smooth) / rope["factor"] + smooth)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scaling.type": "none"}, None),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
            {"rope_type": "linear", "factor": 8.0},
        ),
    ],
)
def test_rotary_scaling_in_words(tmp_path, metadata, expected):
    _write(tmp_path / "m.gguf", extra_metadata=metadata)
    assert config_json(GGUFSource(tmp_path / "m.gguf"))["rope_scaling"] == expected


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"rope.scaling.type": "yarn"}, "yarn"), ({"expert_count": 8}, "mixture of experts")],
)
def test_variants_we_do_not_read_are_refused(tmp_path, metadata, message):
    _write(tmp_path / "m.gguf", extra_metadata=metadata)
    with pytest.raises(WeightsError, match=message):
        config_json(GGUFSource(tmp_path / "m.gguf"))


def test_qwen_rows_are_not_permuted(tmp_path):
    norms = {
        f"blk.{i}.attn_{c}_norm.weight": (np.ones(16, "f4"), Kind.F32) for i in (0, 1) for c in "qk"
    }
    extra = {"attention.key_length": 16}
    arrays = _write(tmp_path / "m.gguf", "qwen3", extra, norms, heads={})
    source = GGUFSource(tmp_path / "m.gguf")
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array)
    config = config_json(source)
    assert config["model_type"] == "qwen3" and config["head_dim"] == 16
    assert "model.layers.1.self_attn.k_norm.weight" in source.names()


_GEMMA_METADATA = writers.LLAMA_METADATA | {
    "block_count": 7,
    "attention.key_length": 32,
    "attention.sliding_window": 512,
    "rope.freq_base": 1000000.0,
}


def test_gemma3_norms_lose_the_one_that_llama_cpp_added(tmp_path):
    norms = (
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
    )
    weights = {theirs: _RNG.standard_normal(64, "f4") for _, theirs in norms}
    tensors = {f"blk.0.{ours}.weight": (1 + weights[theirs], Kind.F32) for ours, theirs in norms}
    tensors["token_embd.weight"] = (_RNG.standard_normal((96, 64), "f4"), Kind.Q8_0)
    tensors["output_norm.weight"] = (np.full(64, 3.0, "f4"), Kind.F32)
    query = _RNG.standard_normal((128, 64), "f4")
    tensors["blk.0.attn_q.weight"] = (query, Kind.F32)
    writers.write_gguf(tmp_path / "m.gguf", "gemma3", _GEMMA_METADATA, tensors)
    source = GGUFSource(tmp_path / "m.gguf")
    for theirs, expected in weights.items():
        found = source.read(f"model.layers.0.{theirs}.weight")
        np.testing.assert_allclose(found, expected, atol=3e-7, err_msg=theirs)
    np.testing.assert_array_equal(source.read("model.norm.weight"), np.full(64, 2.0))
    np.testing.assert_array_equal(source.read("model.layers.0.self_attn.q_proj.weight"), query)
    config = config_json(source)
    assert config["model_type"] == "gemma3_text" and config["query_pre_attn_scalar"] == 32
    assert config["layer_types"].index("full_attention") == 5
    assert config["layer_types"].count("full_attention") == 1


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "m.gguf"
    writers.write_llama_gguf(path)
    whole = path.read_bytes()
    for length in [*range(0, 400), *range(400, len(whole) - 400, 1999)]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"truncated|corrupt"):
            GGUFSource(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(AssetError, match="does not exist"):
        GGUFSource(path)
    path.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(WeightsError, match="GGML"):
        GGUFSource(path)
    _write(path, architecture="mamba")
    with pytest.raises(WeightsError, match=r"'mamba'; known: llama, qwen2, qwen3, gemma3"):
        GGUFSource(path)


def test_unknown_tensors_are_listed(tmp_path):
    extra = {"blk.0.ffn_gate_exps.weight": (np.ones((2, 32), "f4"), Kind.F32)}
    _write(tmp_path / "m.gguf", extra_tensors=extra)
    with pytest.raises(WeightsError, match=r"1 tensor.*blk\.0\.ffn_gate_exps\.weight"):
        GGUFSource(tmp_path / "m.gguf")


def test_one_part_of_a_split_file_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="merge"):
        GGUFSource(tmp_path / "m.gguf")


def test_missing_metadata_is_named(tmp_path):
    tensors = writers.as_gguf_tensors(writers.llama_arrays(_RNG), Kind.F32)
    metadata = {k: v for k, v in writers.LLAMA_METADATA.items() if k != "feed_forward_length"}
    writers.write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors)
    with pytest.raises(WeightsError, match=r"llama\.feed_forward_length"):
        config_json(GGUFSource(tmp_path / "m.gguf"))
