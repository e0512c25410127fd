"""The composition: what is heard, what the LLM gets of it, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import aligner, decode
from tiny_align_jax.data import prompts
from tiny_align_jax.types import CheckpointError, ConfigError
from tiny_align_jax.weights import loading


@pytest.fixture(scope="module", params=["embedlink_ctc", "embedlink"])
def world(request, tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def loaded(world):
    return aligner.Aligner.load(world.workdir, world.cache_dir, need_llm=True)


@pytest.fixture(scope="module")
def copy_of(world, tmp_path_factory):
    """Makes a copy of the workdir with one file changed."""

    def make(name, change):
        folder = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(world.workdir, folder)
        path = folder / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        return folder

    return make


def _features(lengths=(60, 37), seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(lengths), 64, 16)).astype(np.float16)
    return features, np.array(lengths, np.int32)


def test_texts_are_the_kept_rows(loaded):
    hearing = loaded.hear(*_features())
    assert len(hearing) == 2
    for text, rows, keep in zip(
        hearing.texts, hearing.reading.rows_BA, hearing.reading.keep_BA, strict=True
    ):
        assert text == loaded.vocabulary.decode(rows[keep])
    assert any(hearing.texts)


def test_padding_and_neighbours_change_nothing(loaded):
    features, lengths = _features()
    together = loaded.hear(features, lengths)
    spoilt = features.copy()
    spoilt[1, 37:] = 99
    assert loaded.hear(spoilt, lengths).texts == together.texts
    alone = loaded.hear(features[1:], lengths[1:])
    assert alone.texts[0] == together.texts[1]


def test_snap_modes(loaded):
    hearing = loaded.hear(*_features())
    keep = hearing.reading.keep_BA[0]
    nearest = loaded.snap(hearing, 0, "nearest")
    ids = np.asarray(loaded.frozen.row_ids_V)[hearing.reading.rows_BA[0][keep]]
    np.testing.assert_allclose(nearest, loaded.llm.embed(ids), atol=1e-6)
    soft = loaded.snap(hearing, 0, "soft")
    assert soft.shape == nearest.shape
    table = np.asarray(loaded.frozen.table_VD)
    assert np.abs(soft).max() <= np.abs(table).max()  # a mean of rows lies among them
    raw = loaded.snap(hearing, 0, "none")
    assert raw.shape == (hearing.audio_mask_BA[0].sum(), nearest.shape[1])
    np.testing.assert_array_equal(raw, hearing.audio_BAD[0][hearing.audio_mask_BA[0]])
    retokenized = loaded.snap(hearing, 0, "retokenize")
    expected = loaded.tokenizer.encode(" " + hearing.texts[0])
    np.testing.assert_allclose(retokenized, loaded.llm.embed(expected), atol=1e-6)
    with pytest.raises(ConfigError, match=r"'hard'.*nearest, soft, none, retokenize"):
        loaded.snap(hearing, 0, "hard")


def test_embedded_text_is_what_training_aimed_at(loaded):
    """Case and punctuation of a transcript do not reach the LLM's oracle."""
    np.testing.assert_array_equal(
        loaded.embed_text("We call it BEAR!"), loaded.embed_text("we call it bear")
    )
    assert loaded.embed_text("?!").shape == (0, 32)


def test_answers_stream_as_they_are_given(loaded):
    settings = decode.Config(max_new_tokens=8, batch_buckets=(1, 2))
    responder = loaded.responder(settings=settings)
    assert responder.prompt.text.endswith("Say:{audio}<|im_end|>\n<|im_start|>assistant\n")
    inputs = [loaded.embed_text(t) for t in tiny_world.SENTENCES[:3]]
    answers = responder.answer(inputs)
    assert len({a.text for a in answers}) > 1
    for vectors, answer in zip(inputs, answers, strict=True):
        assert "".join(responder.stream(vectors)).strip() == answer.text


def test_nothing_heard_is_answered_with_nothing(loaded):
    responder = loaded.responder(settings=decode.Config(max_new_tokens=8, batch_buckets=(1, 2)))
    nothing = np.zeros((0, 32), np.float32)
    something = loaded.embed_text("the dog")
    first, second, third = responder.answer([nothing, something, nothing])
    assert (first.text, third.text) == ("", "")
    assert second == responder.answer([something])[0]
    assert list(responder.stream(nothing)) == []


def test_another_prompt_changes_the_answer(loaded):
    settings = decode.Config(max_new_tokens=8, batch_buckets=(1, 2))
    heard = [loaded.embed_text("the old dog")]
    other = loaded.responder(prompts.from_instruction("apples apples"), settings).answer(heard)
    assert other[0].log_prob != loaded.responder(settings=settings).answer(heard)[0].log_prob


def test_without_llm_it_hears_but_cannot_answer(world, monkeypatch):
    monkeypatch.setattr(loading, "load_llm", lambda *a: pytest.fail("the LLM was loaded"))
    deaf = aligner.Aligner.load(world.workdir, world.cache_dir, need_llm=False)
    assert len(deaf.hear(*_features()).texts) == 2
    with pytest.raises(ConfigError, match="need_llm=True"):
        deaf.responder()


def test_features_of_another_encoder_are_refused(loaded):
    with pytest.raises(ConfigError, match=r"\(1, 8, 20\).*16"):
        loaded.hear(np.zeros((1, 8, 20)), np.array([8]))


def test_foreign_frozen_parts_are_both_named(world, copy_of):
    def change(card):
        card["encoder"]["fingerprint"] = "aaa"
        card["llm"]["fingerprint"] = "bbb"

    with pytest.raises(CheckpointError) as error:
        aligner.Aligner.load(copy_of("projector.json", change), world.cache_dir, need_llm=False)
    assert all(word in str(error.value) for word in ("encoder", "aaa", "llm", "bbb"))


def test_missing_files_are_all_named(world, tmp_path):
    (tmp_path / "projector.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config.json, projector.safetensors missing"):
        aligner.Aligner.load(tmp_path, world.cache_dir, need_llm=False)


def test_damaged_and_incomplete_cards(world, copy_of):
    folder = copy_of("projector.json", lambda card: card.pop("llm"))
    with pytest.raises(CheckpointError, match="lacks llm"):
        aligner.Aligner.load(folder, world.cache_dir, need_llm=False)
    (folder / "projector.json").write_text('{"proj')
    with pytest.raises(CheckpointError, match=r"projector.json is damaged"):
        aligner.Aligner.load(folder, world.cache_dir, need_llm=False)


def test_weights_of_another_shape_are_refused(world, copy_of):
    def change(card):
        card["projector"]["bridgeformer"]["mlp_dim"] = 48

    with pytest.raises(CheckpointError, match="same export"):
        aligner.Aligner.load(copy_of("projector.json", change), world.cache_dir, need_llm=False)


def test_cut_weights_are_refused(world, copy_of):
    folder = copy_of("projector.json", lambda card: None)
    weights = folder / "projector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        aligner.Aligner.load(folder, world.cache_dir, need_llm=False)
