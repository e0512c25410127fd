"""Every LLM family against tiny random `transformers` models: the same weights, the same logits.

Windows are five tokens, caps tight, norms and biases random in the cases, so a mask, cap or norm that
is left out shows. The reference always runs one unpadded row at a time.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import llms_reference as reference  # noqa: E402

pytestmark = pytest.mark.parity

LENGTH, SHORT, NEW = 12, 7, 4
TOLERANCE = 1e-4


@functools.cache
def pair_of(case: str) -> reference.Pair:
    return reference.make_pair(case)


@pytest.fixture(params=sorted(reference.CASES))
def pair(request) -> reference.Pair:
    return pair_of(request.param)


def rows_of_ids() -> list[np.ndarray]:
    """Two token rows of 12 and 7 tokens, each followed by 4 to decode."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, 97, n + NEW) for n in (LENGTH, SHORT)]


def prompts(side: str):
    """The rows without their last 4 tokens, padded to 12 on one side: ids, positions, mask."""
    ids, mask = np.zeros((2, LENGTH), int), np.zeros((2, LENGTH), bool)
    for i, row in enumerate(rows_of_ids()):
        n = len(row) - NEW
        place = slice(LENGTH - n, LENGTH) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = row[:n], True
    return ids, np.maximum(np.cumsum(mask, axis=1) - 1, 0), mask


def references(pair: reference.Pair) -> list[np.ndarray]:
    """Reference logits of each row alone, unpadded."""
    return [pair.theirs(row[None])[0] for row in rows_of_ids()]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_the_reference_under_padding(pair, side):
    ids, positions, mask = prompts(side)
    got, cache = pair.ours(ids, positions, mask)
    assert cache is None
    assert got.dtype == jnp.float32
    for row, want in enumerate(references(pair)):
        assert np.std(want) > 0.1  # a flat reference would prove nothing
        np.testing.assert_allclose(got[row][mask[row]], want[:-NEW], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_decode_equals_the_full_forward(pair, side):
    ids, positions, mask = prompts(side)
    cache = pair.module.init_cache(pair.config, 2, LENGTH + NEW + 3, jnp.float32)
    got, cache = pair.ours(ids, positions, mask, cache)
    wanted = references(pair)
    for row in range(2):
        np.testing.assert_allclose(got[row][mask[row]], wanted[row][:-NEW], atol=TOLERANCE, rtol=0)
    for step in range(NEW):
        new = np.stack([row[len(row) - NEW + step] for row in rows_of_ids()])[:, None]
        now = mask.sum(axis=1)[:, None] + step
        logits, cache = pair.ours(new, now, np.ones((2, 1), bool), cache)
        for row in range(2):
            want = wanted[row][step - NEW]
            np.testing.assert_allclose(logits[row, 0], want, atol=TOLERANCE, rtol=0)
    assert int(cache["length"]) == LENGTH + NEW


def test_embed_is_what_the_first_layer_sees(pair):
    ids = prompts("left")[0]
    with torch.no_grad():
        seen = pair.model(torch.tensor(ids), output_hidden_states=True).hidden_states[0]
    np.testing.assert_allclose(pair.embed(ids), seen.numpy(), atol=1e-6, rtol=0)


def test_bfloat16_is_as_close_as_the_reference_in_bfloat16(pair):
    """Root-mean-square error below 5 % of the logits' spread, and within 1.3x of torch's own."""
    ids, positions, mask = prompts("left")
    exact = pair.theirs(ids, positions, mask)[mask]
    low = pair.with_model(copy.deepcopy(pair.model).to(torch.bfloat16))
    theirs = low.theirs(ids, positions, mask)[mask]
    half = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16), pair.params)
    ours, _ = pair.with_params(half).ours(ids, positions, mask, dtype=jnp.bfloat16)
    assert ours.dtype == jnp.float32
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2)) / np.std(exact)  # noqa: E731
    assert error(np.asarray(ours)[mask]) < 0.05
    assert error(np.asarray(ours)[mask]) < 1.3 * error(theirs)


def test_longrope_changes_factors_beyond_the_original_length():
    """A row of 40 tokens uses the long factors, one of 20 beside it the short ones."""
    pair = pair_of("phi3_longrope")
    ids = np.random.default_rng(1).integers(3, 97, (2, 40))
    mask = np.ones((2, 40), bool)
    mask[1, 20:] = False
    positions = np.where(mask, np.arange(40), 0)
    got, _ = pair.ours(ids, positions, mask)
    for row, length in enumerate((40, 20)):
        want = pair.theirs(ids[row : row + 1, :length])[0]
        np.testing.assert_allclose(got[row, :length], want, atol=TOLERANCE, rtol=0)
    short = pair.theirs(ids[:1, :20])[0]
    assert np.abs(pair.theirs(ids[:1])[0, :20] - short).max() > 100 * TOLERANCE
