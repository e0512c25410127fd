"""An LLM whose matrices qwix holds, beside our own: the same values, the same way through the decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import decode_loop, quantise_qwix
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import folder, loading


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm") / "llm"
    tiny_world.make_llm(path, np.random.default_rng(0))
    return folder.open_folder(path)


def _logits(loaded, params):
    model = decode_loop.LanguageModel(loaded.module, loaded.config)
    ids = jnp.arange(5, 11)[None]
    positions = jnp.arange(6)[None]
    run = jax.jit(lambda p: model.apply(p, model.embed(p, ids), positions, ids >= 0)[0])
    return np.asarray(run(params))


def test_int8_of_qwix_errs_as_much_as_ours(llm):
    pytest.importorskip("qwix", reason="the extra 'qwix' is not installed")
    floats = loading.load_llm(llm)
    ours = loading.load_llm(llm, jnp.float32, quantize.Config("int8"))
    expected = _logits(floats, floats.params)
    errors = [
        np.linalg.norm(_logits(loaded, params) - expected) / np.linalg.norm(expected)
        for loaded, params in (
            (floats, quantise_qwix.quantise(floats.params, "int8")),
            (ours, ours.params),
        )
    ]
    assert 0 < errors[0] < 0.05 and 0.5 < errors[0] / errors[1] < 2, errors


def test_a_matrix_of_qwix_multiplies_with_what_it_looks_up():
    pytest.importorskip("qwix", reason="the extra 'qwix' is not installed")
    table, x = np.random.default_rng(0).normal(size=(2, 24, 64)).astype(np.float32)
    held = quantise_qwix.quantise({"embedding": table}, "int8")["embedding"]
    rows = np.asarray(held.take(jnp.arange(24)))
    assert 0 < np.abs(rows - table).max() < 0.03
    np.testing.assert_allclose(held.attend(jnp.asarray(x)), x @ rows.T, atol=1e-4)


def test_without_qwix_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(quantise_qwix.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed.*\[qwix\]"):
        quantise_qwix.quantise({}, "int8")
