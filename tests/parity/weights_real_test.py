"""The real assets, when they have been fetched: fingerprints, transformers as the reference.

python -m experiments.fetch_assets --assets=all
pytest -m weights tests/parity
"""

import functools
import os

import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax.weights import assets, loading
from tiny_align_jax.weights.folder import ModelFolder, verify
from tiny_align_jax.weights.gguf import GGUFSource

pytestmark = pytest.mark.weights

# Conversion is deterministic: the same bytes on every machine, from either source.
_FINGERPRINTS = {
    "whisper-tiny.en": "27e6cbbc03132b9e95bc2ff4fe1a8c4ccb207f77998cc7567a3945b626b733f7",
    "whisper-base": "2be218e4f1b5d055eee604bb1f92e17f5b36f316ff5366fb3db3a36c75258467",
    "smollm2-135m-instruct": "eb17367a15744e94829f8f5b80a38c34b15a7ec430149436ab93a8e7d0da2516",
    "gemma-3-270m": "312f2ee884e4d6594c737194d4c109402c44c4c7abdb6149a9b6004a269de638",
    "piper-en-us-joe-medium": "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
}
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\n\n\nthree lines\tand a tab",
    "naïve café — déjà vu 🙂🙃 日本語 テスト",
    "I'm sure we're late, they'LL say 1234567 times",
    "def f(x):\n    return x ** 2",
    "",
)


def _folder(name: str) -> ModelFolder:
    cache = os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align")
    path = os.path.join(os.path.expanduser(cache), name)
    if not os.path.isdir(path):
        pytest.skip(f"not fetched: python -m experiments.fetch_assets --assets={name}")
    return assets.open_folder(path)


def test_every_asset_is_pinned():
    assert set(_FINGERPRINTS) == set(assets.ASSETS)


@pytest.mark.parametrize("name", _FINGERPRINTS)
def test_fingerprints_and_files(name):
    folder = _folder(name)
    assert folder.fingerprint == _FINGERPRINTS[name]
    verify(folder)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_transformers_reads_the_folder_and_agrees_on_the_logits(name):
    torch = pytest.importorskip("torch")
    import transformers

    folder = _folder(name)
    reference, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder.path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.path)
    ids = np.array(tokenizer(_TEXTS[0])["input_ids"])
    loaded = loading.load_llm(folder)
    model = loaded.module.LLM(loaded.config, jnp.float32)
    embedded = loaded.module.embed(loaded.config, loaded.params, ids[None])
    positions, mask = jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), bool)
    logits, _ = model.apply({"params": loaded.params}, embedded, positions, mask)
    with torch.no_grad():
        expected = reference(torch.tensor(ids[None])).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    assert (np.asarray(logits).argmax(-1) == expected.argmax(-1)).all()
    rows = loading.embedding_rows(folder, ids)
    np.testing.assert_allclose(rows, np.asarray(embedded[0]), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_transformers_own_gguf_reader_agrees(name, monkeypatch):
    """Every dequantised tensor and every token, against an independent reader of the same file."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # transformers asks for it
    import gguf
    import transformers

    # transformers parses the file four times, and makes the table of names anew for every module.
    for name_of_it in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name_of_it, functools.cache(getattr(gguf, name_of_it)))

    folder = _folder(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder.path, gguf_file="model.gguf", dtype=torch.float32
    )
    state, source = model.state_dict(), GGUFSource(folder.path / "model.gguf")
    assert set(state) - {"lm_head.weight"} == set(source.names())
    for tensor in source.names():
        np.testing.assert_array_equal(source.read(tensor), state[tensor].numpy(), err_msg=tensor)
    theirs = transformers.AutoTokenizer.from_pretrained(folder.path, gguf_file="model.gguf")
    ours = transformers.AutoTokenizer.from_pretrained(folder.path)
    for text in _TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_tokenizers_lose_nothing(name):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder(name).path / "tokenizer.json"))
    for text in _TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_whisper_folders_load_and_have_a_bounded_position_table(name):
    loaded = loading.load_encoder(_folder(name))
    positions = loaded.params["positions"]
    assert positions.shape == (1500, loaded.config.dim)
    # Whisper's encoder positions are sinusoids: sin^2 + cos^2 = 1 in every pair
    half = loaded.config.dim // 2
    radius = positions[:, :half] ** 2 + positions[:, half:] ** 2
    np.testing.assert_allclose(radius, 1, atol=2e-3)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parity
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_whisper_transcribes_a_recording_through_transformers(name):
    """Every tensor of encoder and decoder takes part, so a swapped one would garble the text."""
    torch = pytest.importorskip("torch")
    import soundfile
    import transformers

    data = os.environ.get("TINY_ALIGN_DATA")
    wav = os.path.join(data or "", "speechocean762/WAVE/SPEAKER0003/000030012.ogg")
    if not os.path.isfile(wav):
        pytest.skip("set TINY_ALIGN_DATA to a folder that holds speechocean762 (OpenSLR 101)")
    folder = _folder(name)
    model, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder.path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    waveform, rate = soundfile.read(wav, dtype="float32")
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    features = extractor(waveform, sampling_rate=rate, return_tensors="pt").input_features
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.path)
    names = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    ids = tokenizer.convert_tokens_to_ids(names[:1] + names[3:] if name.endswith(".en") else names)
    with torch.no_grad():
        encoded = model.model.encoder(features).last_hidden_state
        for _ in range(30):
            logits = model(encoder_outputs=(encoded,), decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.lower().strip(" .") == "mark is going to see elephant", text
