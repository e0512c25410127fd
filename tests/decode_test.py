"""Generation against a plain loop without cache, and the guards against endless or broken answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import decode, decode_loop
from tiny_align_jax.llms import llama
from tiny_align_jax.types import ConfigError

TINY = llama.config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
)
MODEL = decode.LanguageModel(llama, TINY)
NEVER = 39  # a stop id that a short greedy answer does not meet by luck in these tests


@functools.cache
def _params():
    ones = jnp.ones((1, 2, 16)), jnp.arange(2)[None], jnp.ones((1, 2), bool)
    params = llama.LLM(TINY).init(jax.random.key(0), *ones)["params"]
    # Ten times the usual scale: random answers that vary instead of one token for ever.
    return jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params)


def _prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, 16)).astype(np.float32) for n in lengths]


def _generator(stop_ids=(NEVER,), **config):
    # Few shapes, so that the tests share compiled programs.
    shape = {"max_new_tokens": 12, "batch_buckets": (1, 4), "tail_buckets": (32,)}
    return decode.Generator(MODEL, _params(), stop_ids, decode.Config(**(shape | config)))


@jax.jit
def _plain_logits(params, x, length):
    """Logits after `length` tokens: no cache, padding on the other side than in `decode`."""
    n = x.shape[0]
    valid = jnp.arange(n)[None] < length
    return MODEL.apply(params, x[None], jnp.arange(n)[None], valid)[0][0, length - 1]


def _plain_greedy(prompt, num_tokens):
    """The whole sequence again for every token."""
    ids, total = [], 0.0
    x = np.zeros((32, 16), np.float32)
    x[: len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + num_tokens):
        log_probs = np.asarray(jax.nn.log_softmax(_plain_logits(_params(), x, length)))
        ids.append(int(log_probs.argmax()))
        total += float(log_probs[ids[-1]])
        x[length] = _params()["embedder"]["embedding"][ids[-1]]
    return ids, total


def test_greedy_batch_equals_a_plain_loop():
    prompts = _prompts(3, 11, 7, 1, 18)
    answers = _generator().generate(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, log_prob = _plain_greedy(prompt, 12)
        assert list(answer.ids) == ids
        assert answer.log_prob == pytest.approx(log_prob, abs=1e-3)
        assert not answer.stopped
    assert len({a.ids for a in answers}) > 1  # the prompts matter


@pytest.mark.parametrize("prefix_length", [1, 2, 9])
def test_cached_prefix_equals_the_whole_prompt(prefix_length):
    generator = _generator()
    prefix_ids = np.arange(prefix_length) % 40
    prefix = generator.cache_prefix(prefix_ids)
    tails = _prompts(4, 13, 6)
    head = np.asarray(MODEL.embed(_params(), prefix_ids))
    whole = generator.generate([np.concatenate([head, t]) for t in tails])
    cached = generator.generate(tails, prefix)
    again = generator.generate(tails, prefix)  # the prefix survives its first use
    assert [a.ids for a in cached] == [a.ids for a in whole] == [a.ids for a in again]


def test_empty_prefix_is_none():
    assert _generator().cache_prefix([]) is None


def test_stops_on_any_stop_id_and_leaves_it_out():
    prompt = _prompts(5)[0]
    ids, _ = _plain_greedy(prompt, 12)
    late = next(i for i, t in enumerate(ids) if i >= 2 and t not in ids[:i])
    answer = _generator((NEVER, ids[late])).generate([prompt])[0]
    assert answer.stopped
    assert list(answer.ids) == ids[:late]


def test_immediate_stop_is_an_empty_answer():
    prompt = _prompts(5)[0]
    first = _plain_greedy(prompt, 1)[0]
    answer = _generator(first).generate([prompt])[0]
    assert answer.ids == ()
    assert answer.stopped
    assert list(_generator(first).stream(prompt)) == []


def test_rows_that_stop_early_do_not_disturb_the_others():
    prompts = _prompts(5, 8, 6)
    ids = _plain_greedy(prompts[0], 12)[0]
    generator = _generator((ids[0],))
    together = generator.generate(prompts)
    assert together[0].ids == ()
    assert [a.ids for a in together] == [generator.generate([p])[0].ids for p in prompts]


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_stream_equals_generate(chunk):
    prompt = _prompts(6)[0]
    generator = _generator(stream_chunk=chunk)
    expected = generator.generate([prompt])[0]
    assert tuple(generator.stream(prompt)) == expected.ids
    stop = expected.ids[-1]
    stopping = _generator((stop,), stream_chunk=chunk)
    assert tuple(stopping.stream(prompt)) == stopping.generate([prompt])[0].ids


def test_first_token_streams_before_the_rest_is_computed(monkeypatch):
    monkeypatch.setattr(decode_loop, "run", lambda *a: pytest.fail("ran ahead of the reader"))
    stream = _generator().stream(_prompts(6)[0])
    assert next(stream) == _plain_greedy(_prompts(6)[0], 1)[0][0]


def test_sampling_repeats_with_the_seed_and_does_not_depend_on_the_batch():
    prompts = _prompts(4, 4, 4, 9)
    settings = {"temperature": 1.0}
    sample = _generator(**settings, seed=3).generate(prompts)
    assert sample == _generator(**settings, seed=3).generate(prompts)
    assert sample != _generator(**settings, seed=4).generate(prompts)
    small = _generator(**settings, seed=3, batch_buckets=(1,)).generate(prompts)
    assert [a.ids for a in sample] == [a.ids for a in small]
    same_prompt = _generator(**settings, seed=3).generate([prompts[0]] * 4)
    assert len({a.ids for a in same_prompt}) > 1


def test_top_k_one_and_tiny_top_p_are_greedy():
    prompts = _prompts(4, 9)
    greedy = [a.ids for a in _generator().generate(prompts)]
    for limit in ({"top_k": 1}, {"top_p": 1e-6}):
        sampled = _generator(temperature=2.0, **limit).generate(prompts)
        assert [a.ids for a in sampled] == greedy


def test_truncation_keeps_the_right_tokens():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.25, 0.15]]))
    kept = lambda **limits: np.isfinite(decode_loop.truncate(logits, **limits))[0].tolist()  # noqa: E731
    assert kept(top_k=2, top_p=1.0) == [False, True, True, False]
    assert kept(top_k=0, top_p=0.7) == [False, True, True, False]
    assert kept(top_k=0, top_p=0.76) == [False, True, True, True]
    assert kept(top_k=9, top_p=1.0) == [True] * 4


def test_sampled_frequencies_follow_the_temperature():
    logits = jnp.tile(jnp.log(jnp.array([0.7, 0.2, 0.1])), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    sampling = decode_loop.Sampling(1, 0.5, 0, 1.0)
    drawn = np.asarray(decode_loop.draw(sampling, logits, keys, jnp.zeros((), jnp.int32)))
    expected = np.array([0.49, 0.04, 0.01]) / 0.54
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4000, expected, atol=0.03)


def test_compiles_once_a_bucket():
    traces = []

    class Counting:
        embed, init_cache = staticmethod(llama.embed), staticmethod(llama.init_cache)

        @staticmethod
        def LLM(config, dtype):
            traces.append(1)
            return llama.LLM(config, dtype)

    model = decode.LanguageModel(Counting, TINY)
    settings = decode.Config(tail_buckets=(8, 16), batch_buckets=(2, 4))
    generator = decode.Generator(model, _params(), (NEVER,), settings)

    def new_traces(*lengths):
        before = len(traces)
        generator.generate(_prompts(*lengths))
        return len(traces) - before

    per_bucket = new_traces(5, 3)
    assert per_bucket >= 2  # the prompt and the loop
    assert new_traces(8) == new_traces(1, 2) == 0
    assert new_traces(9) == per_bucket
    assert new_traces(3, 4, 5) == per_bucket
    assert new_traces(8, 8, 8, 8, 8, 8) == 0  # a full batch and a half one
    list(generator.stream(_prompts(7)[0]))
    other = decode.Generator(model, jax.tree.map(lambda x: x + 1, _params()), (1, 2, 3), settings)
    before = len(traces)
    assert len(other.generate(_prompts(5))) == 1
    assert (
        len(traces) <= before + per_bucket
    )  # three stop ids are another shape, other params are not


def test_params_are_no_constants_of_the_program():
    generator = _generator()
    state = generator._begin(_prompts(4), [0], None)
    jaxpr = jax.make_jaxpr(decode_loop.run, static_argnums=(0, 1))(
        MODEL, generator._sampling, _params(), state, jnp.array([NEVER]), 3
    )
    assert sum(np.size(c) for c in jaxpr.consts) < 16


def test_progress_is_reported():
    done = []
    _generator(batch_buckets=(1, 2)).generate(_prompts(2, 3, 4), on_batch=done.append)
    assert done == [2, 1]


def test_nothing_to_answer():
    assert _generator().generate([]) == []


def test_bad_prompts_are_all_named():
    bad = [np.zeros((0, 16)), np.zeros((3, 15)), np.full((2, 16), np.nan), np.zeros((2, 16))]
    with pytest.raises(ConfigError, match=r"0 has shape.*1 has shape.*2 holds NaN") as error:
        _generator().generate(bad)
    assert "3 " not in str(error.value).partition(":")[2]


def test_stop_ids_of_another_tokenizer_are_refused():
    with pytest.raises(ConfigError, match="does the tokenizer belong to this LLM"):
        _generator((40,))
    with pytest.raises(ConfigError, match="at least one"):
        _generator(())


def test_bad_settings_are_all_named():
    with pytest.raises(ConfigError) as error:
        decode.Config(max_new_tokens=0, temperature=-1, top_p=0, top_k=-2, tail_buckets=(8, 4))
    for name in ("max_new_tokens", "temperature", "top_p", "top_k", "tail_buckets"):
        assert name in str(error.value)
