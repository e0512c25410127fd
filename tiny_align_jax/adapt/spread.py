"""Jobs divided among all GPUs of a machine: every one adapts its share, by one program.

A job never looks at another's, so that nothing is sent while they run. One GPU, or a CPU, runs `fit.run` as it is.
"""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tiny_align_jax.adapt import fit
from tiny_align_jax.types import Frozen, PyTree

_JOBS = PartitionSpec("jobs")
_SHARED = PartitionSpec()


def run(
    spec: fit.Spec,
    params: PyTree,
    frozen: Frozen,
    corpus: fit.Corpus,
    replay: fit.Corpus | None,
    jobs: fit.Jobs,
    settings: fit.Settings,
) -> fit.Trace:
    """`fit.run` on all local devices; what comes back of several is on the host."""
    shared = (params, frozen, corpus, replay)
    devices, count = jax.local_devices(), len(jobs.rows_JS)
    if min(len(devices), count) == 1:
        return fit.run(spec, *shared, jobs, settings)
    mesh = Mesh(devices, ("jobs",))
    jobs = fit.filled_up(jobs, len(devices))  # every device has as many
    everywhere = jax.device_put((*shared, settings), NamedSharding(mesh, _SHARED))
    trace = _program(spec, mesh)(*everywhere, jax.device_put(jobs, NamedSharding(mesh, _JOBS)))
    return jax.tree.map(lambda x: x[:count], jax.device_get(trace))


@functools.cache
def _program(spec: fit.Spec, mesh: Mesh):
    def share(params, frozen, corpus, replay, settings, jobs):
        return fit.run(spec, params, frozen, corpus, replay, jobs, settings)

    places = (*[_SHARED] * 5, _JOBS)
    return jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=places, out_specs=_JOBS, check_vma=False)
    )
