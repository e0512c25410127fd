"""A run small enough for a test: random frames that carry their transcript, a random table."""

import jax
import numpy as np
import optax

from tiny_align_jax import registry
from tiny_align_jax.data import augment, batching
from tiny_align_jax.train import loop, optimizer
from tiny_align_jax.train.partition import partition
from tiny_align_jax.train.step import StepSpec, init_state
from tiny_align_jax.types import Frozen

NUM_ROWS, WIDTH, FEATURES = 12, 16, 8
# The same for runs of any length, because the schedule is part of the compiled program.
SCHEDULE_STEPS = 60
AUGMENT = augment.Config(time_masks=1, channel_mask_fraction=0.1)


def make_run(
    num_examples=24,
    objective="embedlink",
    projector_values=None,
    seed=0,
    spoil=None,
    augment_config=AUGMENT,
    validate=None,
    **train_values,
):
    """A `loop.Run`; each target row is a fixed pattern of frames, so the task can be learnt."""
    rng = np.random.default_rng(7)
    patterns = rng.normal(size=(NUM_ROWS, FEATURES)).astype(np.float16)
    targets = [rng.integers(1, NUM_ROWS, rng.integers(1, 6)) for _ in range(num_examples)]
    frames = [np.repeat(patterns[t], 8, axis=0) for t in targets]
    if spoil is not None:
        frames[spoil] = np.full_like(frames[spoil], np.nan)
    ids = [f"utt{i:03d}" for i in range(num_examples)]
    examples = batching.make_examples(ids, [len(f) for f in frames], targets, lambda i: frames[i])
    values = {"num_steps": 8, "batch_size": 4, "num_buckets": 1, "log_every": 1} | train_values
    config = registry.make_config(loop, values)
    module = registry.resolve("objectives", objective)
    bridge = registry.resolve("projectors", "bridgeformer")
    shape = {"num_layers": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32, "dropout": 0.1}
    if getattr(module, "FIXED_LENGTH", False):
        shape |= {"pooling": "adaptive", "num_tokens": 8}
    table = rng.normal(size=(NUM_ROWS, WIDTH)).astype(np.float32)
    spec = StepSpec(
        projector=bridge.Projector(
            registry.make_config(bridge, shape | (projector_values or {})), WIDTH, 1.0
        ),
        objective=module,
        objective_config=module.Config(),
        optimizer=optimizer.make(optimizer.Config(learning_rate=3e-3), SCHEDULE_STEPS),
        augment=augment_config,
        average_decay=config.average_decay,
    )
    frozen = Frozen(table_VD=table, row_ids_V=np.arange(NUM_ROWS, dtype=np.int32))
    return loop.Run(config, spec, frozen, examples, validate, seed)


def initial_state(run):
    """State at step 0 of a run."""
    params = loop.init_params(run)
    return init_state(
        run.spec, *partition(params, run.config.trainable, run.config.fixed), run.seed
    )


def assert_same(a, b):
    """Equal trees, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert optax.tree_utils.tree_norm(a) > 0
