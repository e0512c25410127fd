"""One user from recordings to a state and back: on a base in miniature."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from configs import personalize as configs
from tests import tiny_world
from tiny_align_jax import aligner, personalize, personalize_trial, programs, transcribe
from tiny_align_jax.adapt import crew, fit, recipe, replay, state, study_run, user
from tiny_align_jax.types import CheckpointError, ConfigError, DataError

SPEAKERS = ("s1", "s2")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(world):
    return aligner.Aligner.load(world.workdir, world.cache_dir, need_llm=False)


@pytest.fixture(scope="module")
def said(base):
    """All that a speaker said, by speaker."""
    split = personalize_trial.corpus.read_split(base.config)
    return {s: [u for u in split.test if u.speaker_id == s] for s in SPEAKERS}


def _plan(method="words", **values):
    sections = json.loads(configs.get_config(method).to_json_best_effort())
    sections["adapt"] |= {"num_validation": 1, "replay_count": 4, "learning_rate": 0.05} | values
    sections["fit"] |= {"steps_per_checkpoint": 2, "num_checkpoints": 2, "batch_size": 2}
    sections["fit"] |= {"replay_size": 1}
    return recipe.of_sections(sections)


def _personalize(world, base, said, how, name="anna", words=()):
    return personalize.personalize(
        base, world.workdir, str(world.cache_dir), name, said, how, words
    )


@pytest.fixture(scope="module")
def adapted(world, base, said):
    """Norms and biases of projector and encoder; the encoder is part of the step."""
    how, inner = _plan("norms", num_validation=0), _plan("encoder_norms")
    offsets = (*how.method.offsets, *inner.method.offsets)
    how = dataclasses.replace(how, method=dataclasses.replace(how.method, offsets=offsets))
    return _personalize(world, base, said["s1"], how)


def test_a_state_makes_the_base_the_users_own(world, base, said, adapted, tmp_path):
    assert adapted.checkpoint == 2 and adapted.state.delta and adapted.peak_rss_mb > 0
    state.save(tmp_path, adapted.state)
    own = user.apply(base, state.find(tmp_path, "anna"), user.fingerprint(world.workdir))
    before, after = (
        transcribe.Transcriber(a)._hear(np.ones((20, 16), np.float16)).audio_BAD
        for a in (base, own)
    )
    assert not np.allclose(before, after, atol=1e-3)
    heard, own_heard = (user.record(a, said["s1"]).frames[0] for a in (base, own))
    assert not np.allclose(heard, own_heard, atol=1e-2)  # the encoder is the user's, too
    leaves = own.params["projector"]["input_mlp"]["up"]
    np.testing.assert_array_equal(
        leaves["kernel"], base.params["projector"]["input_mlp"]["up"]["kernel"]
    )


def test_the_base_travels_with_its_replay(world, base, monkeypatch):
    assert replay.find(base, world.workdir, str(world.cache_dir), 4, audio=True).audio is not None
    replay.find(base, world.workdir, str(world.cache_dir), 4)
    monkeypatch.setattr(replay, "of_corpus", None)  # the corpus is not needed again
    assert len(replay.find(base, world.workdir, str(world.cache_dir), 4).frames) == 1
    saved = replay.load(world.workdir / replay.FILE, base.vocabulary)
    assert len(saved.frames) == len(saved.targets) == 1  # the training split has one utterance
    assert saved.topics_KV.sum() == len(saved.targets[0])


def test_before_and_after_are_scored_with_intervals_and_a_control(world, base, said, adapted):
    how = _plan()
    control = _personalize(world, base, said["s2"], how)
    trial = personalize_trial.run(base, world.workdir, said["s1"], adapted, control)
    assert list(trial.systems) == ["before", "after", "other speaker's"]
    assert len(trial.utterances) == 3 and "after - before, paired: wer" in str(trial)
    plain = json.loads(json.dumps(personalize_trial.to_json(adapted, trial)))
    assert plain["references"] == [u.text for u in trial.utterances]


def test_a_second_copy_learns_up_to_the_best_checkpoint_or_the_base_is_kept(
    world, base, said, monkeypatch
):
    ran = []

    def run(spec, params, frozen, corpus, replayed, jobs, settings):
        ran.append((int(jobs.train_JS.sum()), int(settings.stop_step)))
        return personalize.fit.Trace(np.array([losses]), None, {"frames:shift": np.ones((1, 16))})

    monkeypatch.setattr(personalize.fit, "run", run)
    losses = [1.0, 1.1, np.nan]
    kept = _personalize(world, base, said["s1"], _plan("speaker_vector"))
    assert kept.checkpoint == 0 and not kept.state.delta and "kept the base's weights" in str(kept)
    assert ran == [(2, 4)]  # one of three utterances held back, two checkpoints of two steps
    losses = [1.0, 0.9, 1.2]
    better = _personalize(world, base, said["s1"], _plan("speaker_vector"))
    assert better.checkpoint == 1 and better.state.delta
    assert ran[1:] == [(2, 4), (3, 2)]


def test_a_chosen_checkpoint_is_kept_unless_validation_speaks_against_it(
    world, base, said, monkeypatch
):
    ran = []

    def run(spec, params, frozen, corpus, replayed, jobs, settings):
        ran.append(int(settings.stop_step))
        return personalize.fit.Trace(np.array([losses]), None, {"frames:shift": np.ones((1, 16))})

    monkeypatch.setattr(personalize.fit, "run", run)
    chosen = _plan("speaker_vector", checkpoint=1, tolerance=0.1)
    losses = [1.0, 1.05, 1.05]
    kept = _personalize(world, base, said["s1"], chosen)
    assert kept.checkpoint == 1 and kept.state.delta and kept.valid_losses == (1.0, 1.05)
    losses = [1.0, 1.2, 1.2]
    assert _personalize(world, base, said["s1"], chosen).checkpoint == 0
    assert ran == [2, 2, 2]  # two steps to the first checkpoint; no second copy of a base
    with pytest.raises(ConfigError, match=r"adapt\.checkpoint=3: there are fit\.num_checkpoints=2"):
        _plan("speaker_vector", checkpoint=3)


def test_a_second_user_compiles_nothing(world, base, said):
    compiled = []

    def listen(event, duration_secs, **unused):
        compiled.extend([event] * (event == "/jax/core/compile/backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(listen)  # for good: JAX 0.6 forgets none
    counts = []
    for speaker, words in (("s1", ()), ("s2", ("zebra",))):  # other words, so another table
        compiled.clear()
        _personalize(world, base, said[speaker], _plan("speaker_vector"), words=words)
        counts.append(len(compiled))
    assert counts[0] > 0 and counts[1] == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_new_process_neither_traces_nor_gets_anything_else(world, base, said, monkeypatch, ahead):
    monkeypatch.setattr(personalize, "_reads_ahead", lambda: ahead)
    how, traced, deltas, one = _plan("speaker_vector", num_validation=0), [], [], fit._one
    monkeypatch.setattr(fit, "_one", lambda *args: traced.append(1) or one(*args))
    for _ in range(2):
        programs.forget()
        jax.clear_caches()
        traced.clear()
        personalize.read_ahead()  # as the command does before it loads the base
        deltas.append(_personalize(world, base, said["s1"], how).state.delta)
    assert not traced
    jax.tree.map(np.testing.assert_array_equal, *deltas)
    if not ahead:
        assert not programs._AHEAD


def test_users_with_few_new_words_share_programs(base):
    have = len(base.vocabulary)
    spare = [i for i in range(have + 40) if i not in base.vocabulary.row_ids][:17]
    sizes = {}
    for count in (0, 1, 16, 17):
        wide = user.extend_whole(base, np.array(spare[:count], np.int32))
        assert len(set(wide.vocabulary.row_ids.tolist())) == len(wide.vocabulary)
        sizes[count] = wide.frozen.table_VD.shape[0] - have
    assert sizes == {0: 16, 1: 16, 16: 16, 17: 32}


def test_a_word_prior_that_adds_errors_is_left_out(world, base, said, monkeypatch):
    texts = {True: ["nothing of this"], False: [u.text for u in said["s1"]]}
    held_back = int(np.flatnonzero(personalize._held_back(_plan().adapt, 3))[0])

    def hear(self, *unused):  # all is right without a prior, or with one
        # A list alone raises its rows by exactly 1.
        with_prior = not set(np.unique(self.params["objective"]["row_bias"])) <= {
            0.0,
            1.0,
            crew.HIDDEN,
        }
        right = with_prior == prior_helps
        return aligner.Hearing((texts[not right][held_back if right else 0],), None, None, None)

    monkeypatch.setattr(aligner.Aligner, "hear", hear)
    found = {}
    for prior_helps in (True, False):
        found[prior_helps] = _personalize(world, base, said["s1"], _plan()).state
    assert found[True].row_bias is not None and found[False].row_bias is None
    assert found[False].about["recipe"]["word_prior"]["weight"] == 0
    word = tiny_world.SENTENCES[0].split()[1]
    listed = _personalize(world, base, said["s1"], _plan(), words=[word]).state.row_bias
    assert set(np.unique(listed)) == {0.0, 1.0}  # the user's own list stays


def test_a_word_list_raises_the_rows_of_its_words(world, base, said):
    word = tiny_world.SENTENCES[0].split()[1]
    found = _personalize(world, base, said["s1"], _plan(), words=[word]).state.row_bias
    plain = _personalize(world, base, said["s1"], _plan()).state.row_bias
    rows = sorted(set(base.vocabulary.encode(word).tolist()))
    assert np.flatnonzero(~np.isclose(found, plain)).tolist() == rows


def test_a_state_of_another_base_is_refused(base, adapted):
    with pytest.raises(CheckpointError, match="personalise again"):
        user.apply(base, adapted.state, "0" * 64)


def test_what_cannot_be_used_is_named(world, base, said, tmp_path):
    silent = dataclasses.replace(said["s1"][0], text=" ...")
    missing = dataclasses.replace(said["s1"][1], audio_path=str(tmp_path / "gone.wav"))
    with pytest.raises(DataError, match="no transcript"):
        _personalize(world, base, [silent, missing], _plan())
    with pytest.raises(DataError, match="to be held back"):
        _personalize(world, base, said["s1"][:1], _plan())
    with pytest.raises(ConfigError, match="unknown section"):
        recipe.of_sections({"methods": {}})


def test_a_user_has_one_source_and_speakers_must_be_new_to_the_base(base):
    gather = personalize_trial.gather
    config = recipe.Config()
    with pytest.raises(ConfigError, match="give one of"):
        gather(base, None, None, [], 0, config)
    with pytest.raises(DataError, match="trained on this speaker"):
        gather(base, "s0", None, [], 0, config)
    with pytest.raises(DataError, match="no such speaker"):
        gather(base, "nobody", None, [], 0, config)
    assert gather(base, None, None, [("a.wav", "hello")], 0, config).train[0].text == "hello"


def test_a_studys_ngrams_know_the_rows_that_users_bring(world, base, tmp_path, monkeypatch):
    texts = tmp_path / "sentences.txt"
    texts.write_text("\n".join(tiny_world.SENTENCES) + "\n")
    # A base that lacks its last row, which the users then bring.
    known = dataclasses.replace(base.vocabulary, row_ids=base.vocabulary.row_ids[:-1])
    few = functools.partial(study_run.crew_lib.gather, least=1)
    monkeypatch.setattr(study_run.crew_lib, "gather", few)
    monkeypatch.setattr(crew.user, "extend", lambda own, extra: base)
    config = study_run.Config(ngram_texts=str(texts), replay_count=4)
    ground = study_run.prepare(
        dataclasses.replace(base, vocabulary=known),
        str(world.cache_dir), "test", config, fit.Config(), False,
    )  # fmt: skip
    assert len(ground.grams.unigram_V) == len(base.vocabulary) == len(known) + 1
