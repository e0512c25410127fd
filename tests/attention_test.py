"""Attention that encoders and projectors share: masks, and which kernel is chosen."""

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import attention


def _inputs(dtype=jnp.float32, tokens=6):
    return [jax.random.normal(jax.random.key(i), (2, tokens, 2, 8), dtype) for i in range(3)]


def test_invalid_keys_count_for_nothing():
    q, k, v = _inputs()
    mask = jnp.arange(6)[None] < jnp.array([[4], [6]])
    out = attention.attend(q, k, v, mask)
    alone = attention.attend(q[:1], k[:1, :4], v[:1, :4])
    np.testing.assert_allclose(out[:1], alone, rtol=1e-5, atol=1e-6)
    scores = jnp.einsum("ahk,thk->hat", q[1], k[1]) * 8**-0.5
    expected = jnp.einsum("hat,thk->ahk", jax.nn.softmax(scores), v[1])
    np.testing.assert_allclose(out[1], expected, rtol=1e-5, atol=1e-6)


def test_flash_kernel_only_where_it_is_built_and_fits(monkeypatch):
    chosen = []
    monkeypatch.setattr(attention, "_flash", lambda q, k, v, n: chosen.append(n) or q)
    mask = jnp.arange(6)[None] < jnp.array([[4], [0]])
    attention.attend(*_inputs(jnp.bfloat16), mask)
    assert not chosen  # a CPU has none
    monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
    attention.attend(*_inputs(jnp.float32), mask)
    attention.attend(*_inputs(jnp.bfloat16, tokens=5))
    assert not chosen
    attention.attend(*_inputs(jnp.bfloat16), mask)
    np.testing.assert_array_equal(chosen[0], [4, 1])  # a row without keys must stay finite
    attention.attend(*_inputs(jnp.bfloat16), mask, "xla")
    assert len(chosen) == 1


def test_long_inputs_go_row_by_row_on_a_cpu_and_give_the_same(monkeypatch):
    mask = jnp.arange(6)[None] < jnp.array([[4], [6]])
    for inputs in (_inputs(), _inputs(jnp.bfloat16)):
        for valid in (mask, None):
            whole = attention.attend(*inputs, valid)
            with monkeypatch.context() as patch:
                patch.setattr(attention, "_LONG", 36)
                rows = attention.attend(*inputs, valid)
            assert rows.dtype == whole.dtype
            np.testing.assert_allclose(
                *(x.astype(jnp.float32) for x in (rows, whole)),
                atol=1e-6 if whole.dtype == jnp.float32 else 0.02,
            )
