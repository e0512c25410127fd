"""What joins the training utterances, how often it is drawn, and a run that starts from another's end."""

import collections
import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

from tests.train import tiny, world
from tiny_align_jax.data import batching, splits
from tiny_align_jax.projectors import _layers
from tiny_align_jax.train import checkpoint, corpus, init_from, mixture, setup
from tiny_align_jax.types import CheckpointError, ConfigError, DataError, Utterance


def _utterances(count, speaker="a", text="sentence"):
    return [
        Utterance(f"{speaker}{i}", f"{speaker}{i}.wav", f"{text} {i}", speaker)
        for i in range(count)
    ]


SPLIT = splits.Split(
    train=tuple(_utterances(3)),
    validation=tuple(_utterances(2, "v", "checked")),
    test=tuple(_utterances(2, "t", "scored")),
)


@pytest.fixture
def second(tmp_path):
    """A manifest with six sentences of its own, one of validation and one of test."""
    texts = [*(f"new {i}" for i in range(6)), "Checked 1.", "SCORED 0"]
    rows = []
    for i, text in enumerate(texts):
        soundfile.write(tmp_path / f"{i}.wav", np.ones(1600) * 0.1, 16000)
        rows.append({"audio": f"{i}.wav", "text": text, "speaker": "t", "split": "train"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "jsonl": {"manifest": str(tmp_path / "m.jsonl")}}


def test_without_a_share_the_second_corpus_is_not_read():
    assert mixture.extend(SPLIT, mixture.Config(), {}) == SPLIT


def test_a_second_corpus_joins_training_less_what_is_held_out(second):
    split = mixture.extend(SPLIT, mixture.Config(share=0.5), second)
    more = split.train[3:]
    assert split.train[:3] == SPLIT.train and len(more) == 6
    assert {u.text for u in split.dropped} == {"Checked 1.", "SCORED 0"}
    assert all(u.utterance_id.startswith("mixture:") for u in more)
    assert not splits.leaks(split)  # its speaker is called as a test speaker is, but is another
    assert (split.validation, split.test) == (SPLIT.validation, SPLIT.test)
    alone = mixture.extend(SPLIT, mixture.Config(share=1.0), second)
    assert alone.train == more


def test_a_limit_draws_the_same_part_and_held_out_sentences_alone_are_refused(second):
    config = mixture.Config(share=1.0, limit=4)
    first, again = (mixture.extend(SPLIT, config, second).train for _ in range(2))
    other = mixture.extend(SPLIT, dataclasses.replace(config, seed=3), second).train
    assert first == again and len(first) == len(other) == 4 and first != other
    whole = dataclasses.replace(SPLIT, test=tuple(_utterances(6, "t", "new")) + SPLIT.test)
    with pytest.raises(DataError, match="all 8 training sentences"):
        mixture.extend(whole, config, second)


def test_variants_are_copies_with_ids_of_their_own(second):
    config = mixture.Config(share=0.5, variants=("gain:-6",))
    split = mixture.extend(SPLIT, config, second, ("speed:0.9", "speed:1.1"))
    assert collections.Counter(u.distortion for u in split.train) == {
        "": 9, "speed:0.9": 3, "speed:1.1": 3, "gain:-6": 6,
    }  # fmt: skip
    assert len({u.utterance_id for u in split.train}) == len(split.train)
    assert split.validation == SPLIT.validation
    with pytest.raises(ConfigError, match="different distortions"):
        mixture.extend(SPLIT, mixture.Config(), {}, ("speed:0.9", "speed:0.9"))
    with pytest.raises(ConfigError, match="unknown kind"):
        mixture.Config(variants=("louder:2",))
    with pytest.raises(ConfigError, match=r"share=1\.5"):
        mixture.Config(share=1.5)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_each_corpus_is_drawn_as_its_share_says(share):
    ids = ["a0", "a1", *(f"mixture:{i}" for i in range(18))]
    corpora = mixture.corpora(ids, mixture.Config(share=share))
    examples = batching.make_examples(ids, [32] * 20, [np.ones(2, np.int32)] * 20, None)
    examples = dataclasses.replace(examples, corpora=corpora)
    groups = batching.schedule(examples, 4, (32,), 1, seed=0)
    drawn = collections.Counter(
        int(i)
        for _ in range(50)  # ten epochs of five batches
        for group in [next(groups)]
        for i in group.index_KB[group.weight_KB > 0]
    )
    assert sum(drawn.values()) == 200
    assert sum(drawn[i] for i in range(2, 20)) == round(200 * share)
    assert abs(drawn[0] - drawn[1]) <= 10  # an odd number of draws an epoch leaves one over
    if share == 0.8:  # 16 of 18 an epoch, never one twice
        assert min(drawn[i] for i in range(2, 20)) >= 5
    again = [next(batching.schedule(examples, 4, (32,), 1, seed=0, first_step=k)) for k in (7, 7)]
    np.testing.assert_array_equal(again[0].index_KB, again[1].index_KB)
    assert mixture.corpora(ids, mixture.Config(share=1.0)) == ()
    with pytest.raises(DataError, match="no usable"):
        mixture.corpora(ids[:2], mixture.Config(share=share))


@pytest.mark.parametrize(("count", "share"), [(15, 0.1), (15, 0.02), (9, 0.5)])
def test_the_parts_of_an_epoch_add_up_to_it(count, share):
    """Shares that both round up, and one too small for a single draw."""
    ids = ["a0", "a1", *(f"mixture:{i}" for i in range(count - 2))]
    examples = batching.make_examples(ids, [32] * count, [np.ones(2, np.int32)] * count, None)
    corpora = mixture.corpora(ids, mixture.Config(share=share))
    examples = dataclasses.replace(examples, corpora=corpora)
    epoch = next(batching.schedule(examples, count, (32,), 0, seed=0))
    assert epoch.index_KB.shape == (1, count)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run over two corpora with a variant, and the folder its projector was exported to."""
    root = tmp_path_factory.mktemp("mixture")
    config, cache_dir = world.make(root)
    manifest = root / "audio" / "second.jsonl"
    rows = [
        {"audio": f"{speaker}{i}.wav", "text": f"call {word} {speaker}", "speaker": "t"}
        for speaker in "ab"
        for i, word in enumerate(("dog", "door", "apples"))
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["features"]["variants"] = ["gain:-6"]
    config["mixture"]["share"] = 0.5
    config["mixture"]["dataset"] = {"name": "jsonl", "jsonl": {"manifest": str(manifest)}}
    (root / "more.txt").write_text("\ncall me dear\n")
    config["vocabulary"]["texts"] = str(root / "more.txt")
    made = setup.prepare(config, cache_dir, progress=False)
    params = jax.tree.map(lambda x: x + 1, made.state.trainable)
    checkpoint.export(root / "stage1", params, made.card)
    return made, config, cache_dir, root / "stage1", params


def test_a_config_mixes_corpora_variants_and_words(prepared):
    made, config, _, _, _ = prepared
    ids = made.run.examples.ids
    assert sum(i.startswith("mixture:") for i in ids) == 6
    assert sum(i.endswith("+gain:-6") for i in ids) == 16
    (real, real_share), (more, share) = made.run.examples.corpora
    assert (real_share, share) == (0.5, 0.5) and len(real) == 32 and len(more) == 6
    texts = corpus.vocabulary_texts(config, made.split)
    assert texts[-1] == "call me dear" and len(texts) == len(made.split.train) + 1


def test_a_stage_starts_from_the_one_before(prepared, tmp_path):
    _, config, cache_dir, folder, params = prepared
    config = json.loads(json.dumps(config))
    config["train"]["init_from"] = str(folder)
    config["vocabulary"]["texts"] = ""  # fewer rows: no matter
    config["mixture"]["share"] = 0.0
    config["features"]["variants"] = []
    second = setup.prepare(config, cache_dir, progress=False)
    tiny.assert_same(second.state.trainable, params)
    config["train"]["init_from"] = str(tmp_path)
    with pytest.raises(CheckpointError, match="expected a folder that"):
        setup.prepare(config, cache_dir, progress=False)


def test_what_does_not_fit_is_refused_and_named(prepared):
    made, _, _, folder, params = prepared
    other = made.card | {"encoder": made.card["encoder"] | {"layers": [0]}}
    with pytest.raises(CheckpointError, match=r"encoder layers: \[-1\] there, \[0\] here"):
        init_from.load(folder, params, other)
    wider = {
        **params,
        "projector": jax.tree.map(lambda x: np.zeros((*x.shape, 2)), params["projector"]),
    }
    with pytest.raises(CheckpointError, match="another shape"):
        init_from.load(folder, wider, made.card)
    other_objective = {**params, "objective": {"scale": np.full((3,), 7.0)}}
    loaded = init_from.load(folder, other_objective, made.card)
    tiny.assert_same(loaded["objective"], other_objective["objective"])
    tiny.assert_same(loaded["projector"], params["projector"])


def test_a_text_file_that_is_not_there(prepared):
    made, config, _, _, _ = prepared
    broken = config | {"vocabulary": config["vocabulary"] | {"texts": "none.txt"}}
    with pytest.raises(DataError, match=r"vocabulary\.texts='none\.txt'"):
        corpus.vocabulary_texts(broken, made.split)


def test_the_layer_mix_is_a_mean_of_normalised_layers():
    rng = np.random.default_rng(0)
    scale = np.repeat([1, 50, 0.1], 4)
    features = (rng.normal(size=(2, 5, 12)) * scale).astype(np.float32)
    mask = np.arange(5)[None] < np.array([[5], [3]])
    module = _layers.LayerMix(3)
    params = module.init(jax.random.key(0), features, mask)
    mixed = module.apply(params, features, mask)
    layers = features.reshape(2, 5, 3, 4)
    normed = (layers - layers.mean(-1, keepdims=True)) / layers.std(-1, keepdims=True)
    np.testing.assert_allclose(mixed[0], normed.mean(2)[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(mixed)[1, 3:], 0)
    params["params"]["weights"] = np.array([50.0, 0.0, 0.0])
    only = module.apply(params, features, mask)
    np.testing.assert_allclose(only[0], normed[0, :, 0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="mix_layers=5 does not divide"):
        _layers.LayerMix(5).init(jax.random.key(0), features, mask)
