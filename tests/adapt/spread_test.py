"""Jobs on two devices: the copies that one device makes, whatever their number."""

import os
import subprocess
import sys

import jax
import numpy as np

from tests.adapt import adapt_fit_test as users
from tiny_align_jax.adapt import fit, spread

ROWS = (users.A, users.B, users.C)  # odd: the second device has one to spare


def _adapt() -> fit.Trace:
    ear, params, frozen, corpus = users.make_base()
    jobs, settings = users.make_jobs(ROWS)
    spec = fit.Spec(ear, users.METHOD, users.CONFIG)
    return spread.run(spec, params, frozen, corpus, corpus, jobs, settings)


def test_two_devices_make_the_copies_of_one(tmp_path):
    assert len(jax.local_devices()) == 1  # here `spread.run` is `fit.run`
    here = _adapt()
    there = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    saved = tmp_path / "two.npz"
    subprocess.run([sys.executable, "-m", __name__, str(saved)], env=there, check=True)
    two = np.load(saved)
    assert two["devices"] == 2
    np.testing.assert_allclose(two["valid_loss_JC"], here.valid_loss_JC, rtol=1e-4)
    np.testing.assert_array_equal(two["readings_JCSA"], here.readings_JCSA)
    assert set(here.delta) <= set(two)
    for name, value in here.delta.items():
        np.testing.assert_allclose(two[name], value, atol=1e-4)


if __name__ == "__main__":
    trace = _adapt()
    np.savez(
        sys.argv[1],
        devices=len(jax.local_devices()),
        valid_loss_JC=trace.valid_loss_JC,
        readings_JCSA=trace.readings_JCSA,
        **trace.delta,
    )
