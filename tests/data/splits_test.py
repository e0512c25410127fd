"""Splits: no sentence, speaker or recording of the test set in training, whatever the spelling."""

import collections
import dataclasses

import pytest

from tiny_align_jax.data import splits
from tiny_align_jax.datasets import speechocean762
from tiny_align_jax.types import ConfigError, DataError, Utterance


def _utterance(name, text, speaker, age=None, **values):
    return Utterance(name, f"{name}.wav", text, speaker, age=age, **values)


def _train(num_speakers=12, ages=(7, 12, 30)):
    return [
        _utterance(f"s{s}_{i}", f"sentence {s} {i}", f"s{s}", ages[s % len(ages)])
        for s in range(num_speakers)
        for i in range(4)
    ]


TEST = [_utterance(f"t{i}", f"test sentence {i}", f"t{i}", 8) for i in range(3)]


def test_sentences_of_the_test_set_leave_training_however_they_are_written():
    leaked = [
        _utterance("x1", "TEST SENTENCE 1!", "s1", 12),
        _utterance("x2", "test  sentence, 2", "s2", 30),
    ]
    split = splits.held_out([*_train(), *leaked], TEST, 2)
    assert [u.utterance_id for u in split.dropped] == ["x1", "x2"]
    assert len(split.train) + len(split.validation) == len(_train())
    assert split.test == tuple(TEST)
    assert splits.leaks(split) == []


def test_roles_do_not_share_speakers_and_keep_the_corpus_order():
    split = splits.held_out(_train(), TEST, 3)
    train, validation = ({u.speaker_id for u in role} for role in (split.train, split.validation))
    assert len(validation) == 3 and len(train) == 9 and not train & validation
    order = [u.utterance_id for u in _train()]
    assert [order.index(u.utterance_id) for u in split.train] == sorted(
        order.index(u.utterance_id) for u in split.train
    )


def test_draw_follows_the_seed_and_the_age_bands():
    train = _train(60, ages=(7, 7, 12, 30))
    first = splits.held_out(train, TEST, 8, seed=0)
    assert splits.held_out(train, TEST, 8, seed=0) == first
    assert splits.held_out(train, TEST, 8, seed=1).validation != first.validation
    speakers = {u.speaker_id: splits.age_band(u.age) for u in first.validation}
    assert collections.Counter(speakers.values()) == {"6-9": 4, "10-15": 2, "adult": 2}


def test_fewer_training_speakers_leave_validation_as_it_is():
    whole = splits.held_out(_train(), TEST, 3)
    part = splits.held_out(_train(), TEST, 3, num_train_speakers=4)
    assert part.validation == whole.validation
    assert len({u.speaker_id for u in part.train}) == 4
    assert all(u in whole.train for u in part.train)


def test_a_speaker_of_several_ages_or_none_is_one_speaker():
    train = _train(6)
    train += [_utterance(f"later{i}", f"later {i}", "s0", 12 + i) for i in range(3)]
    train += [_utterance("baby", "baby", "s6", 0.0), _utterance("who", "who", "s7")]
    for seed in range(8):
        split = splits.held_out(train, TEST, 4, seed=seed)
        assert len({u.speaker_id for u in split.validation}) == 4
        assert splits.leaks(split) == []
    assert splits._speakers_by_band(train, 0).count("s0") == 1


def test_too_many_speakers_wanted():
    with pytest.raises(ConfigError, match=r"10 validation and 5 training speakers.* 12 after 0"):
        splits.held_out(_train(), TEST, 10, num_train_speakers=5)
    with pytest.raises(ConfigError, match=r"0 after 3 utterance\(s\) were dropped"):
        splits.held_out(TEST, TEST, 0)


def test_every_leak_is_reported():
    clean = splits.held_out(_train(), TEST, 2)
    same_audio = dataclasses.replace(TEST[0], text="other words", speaker_id="new", end_s=None)
    cut = dataclasses.replace(TEST[0], utterance_id="cut", end_s=2.0)
    leaky = dataclasses.replace(
        clean,
        train=(*clean.train, same_audio, dataclasses.replace(cut, text="cut", speaker_id="cut")),
        validation=(*clean.validation, _utterance("v", "Test sentence 2.", "s0", 7)),
        test=(*clean.test, cut),
    )
    assert splits.leaks(leaky) == [
        "speaker s0 is in train and validation",
        "audio t0.wav is in train, and in test as t0.wav",
        "audio t0.wav is in train, and in test as t0.wav",
        "sentence 'test sentence 2' is in validation and test",
    ]
    with pytest.raises(DataError, match=r"4 leak\(s\) between splits:\n  speaker s0"):
        splits.refuse_leaks(leaky)
    assert not any("speaker" in line for line in splits.leaks(leaky, shared_speakers=True))
    splits.refuse_leaks(clean)


def test_many_leaks_are_counted_and_a_few_shown():
    split = splits.Split(tuple(_train(30)), (), tuple(_train(30)))
    with pytest.raises(DataError) as error:
        splits.refuse_leaks(split)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("270 leak(s)") and len(lines) == 22 and lines[-1] == "  and 250 more"


@pytest.mark.parametrize(
    ("age", "band"),
    [(None, "unknown"), (6, "6-9"), (9.9, "6-9"), (10, "10-15"), (15.5, "10-15"), (16, "adult")],
)
def test_age_band(age, band):
    assert splits.age_band(age) == band


@pytest.mark.data
def test_so762_is_the_split_that_results_are_named_after(data_root):
    config = speechocean762.Config(root=str(data_root / "speechocean762"))
    corpus = {name: speechocean762.read(config, name) for name in ("train", "test")}
    split = splits.held_out(corpus["train"], corpus["test"], 12)
    assert (len(split.dropped), len(split.test)) == (46, 1280)
    assert len({u.speaker_id for u in split.test}) == 64
    assert len({u.speaker_id for u in split.validation}) == 12
    assert splits.leaks(split) == []


def test_a_copy_of_a_test_recording_under_another_name_is_found():
    train, test = (Utterance(n, f"{n}.wav", f"text {n}", n) for n in ("a", "b"))
    split = splits.Split((train,), (), (test,))
    assert not splits.leaks(split)
    same, other = {"a.wav": "1", "b.wav": "1"}, {"a.wav": "1", "b.wav": "2"}
    assert splits.leaks(split, digest_of=same) == ["audio a.wav is in train, and in test as b.wav"]
    assert not splits.leaks(split, digest_of=other)


def test_folds_over_speakers_score_everybody_once():
    said = _train(14, ages=(7, 7, 12, 30))
    folds = [splits.speaker_fold(said, 4, fold) for fold in range(4)]
    scored = [speaker for _, test in folds for speaker in {u.speaker_id for u in test}]
    assert sorted(scored) == sorted({u.speaker_id for u in said})
    for train, test in folds:
        assert len(train) + len(test) == len(said)
        assert splits.leaks(splits.held_out(train, test, 2)) == []
        assert {splits.age_band(u.age) for u in test} >= {"6-9"}
    assert splits.speaker_fold(said[::-1], 4, 1)[1] == folds[1][1][::-1]
    assert splits.speaker_fold(said, 4, 1, seed=1) != folds[1]
    for num_folds, fold in ((15, 0), (4, 4), (1, 0)):
        with pytest.raises(ConfigError, match="over 14 speakers"):
            splits.speaker_fold(said, num_folds, fold)


def test_a_speakers_folds_share_no_test_utterance_and_are_drawn_by_seed():
    said = [_utterance(f"u{i:02d}", f"sentence {i}", "me") for i in range(20)]
    folds = [splits.within_speaker(said, 6, 3, fold) for fold in range(3)]
    tested = [u.utterance_id for fold in folds for u in fold.test]
    assert len(tested) == len(set(tested)) == 18
    for fold in folds:
        assert (len(fold.train), len(fold.validation), len(fold.test)) == (11, 3, 6)
        assert splits.leaks(fold, shared_speakers=True) == []
    assert splits.within_speaker(said[::-1], 6, 3, 1) == folds[1]
    assert splits.within_speaker(said, 6, 3, 1, seed=1) != folds[1]


@pytest.mark.parametrize(
    ("fold", "num_test", "num_validation"), [(3, 6, 3), (-1, 6, 3), (0, 18, 2)]
)
def test_folds_that_cannot_be_are_refused(fold, num_test, num_validation):
    said = [_utterance(f"u{i:02d}", f"sentence {i}", "me") for i in range(20)]
    with pytest.raises(ConfigError, match=r"test utterances in 20|20 utterances"):
        splits.within_speaker(said, num_test, num_validation, fold)
