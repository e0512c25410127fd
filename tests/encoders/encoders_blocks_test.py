"""The encoders' GELU against its definition."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax.encoders import _blocks


@pytest.mark.parametrize("dtype, relative", [(jnp.float32, 2e-7), (jnp.bfloat16, 2**-8)])
def test_gelu_is_the_exact_one(dtype, relative):
    x = jnp.asarray(np.linspace(-12, 12, 4001), dtype)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in np.asarray(x, np.float64).tolist()]
    found = np.asarray(_blocks.gelu(x).astype(jnp.float32))
    assert _blocks.gelu(x).dtype == dtype
    np.testing.assert_allclose(found, exact, rtol=relative, atol=1e-6)
