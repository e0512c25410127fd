"""Training steps of the baseline equal ours: one update, fifty losses, readings; augmentation and modes."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.train import tiny  # noqa: E402
from third_party.torch_baseline import bridgeformer, objectives, step  # noqa: E402
from tiny_align_jax import ctc  # noqa: E402
from tiny_align_jax.data import augment, batching  # noqa: E402
from tiny_align_jax.train import loop, optimizer, setup  # noqa: E402
from tiny_align_jax.train import step as step_lib  # noqa: E402
from tiny_align_jax.weights import safetensors  # noqa: E402

pytestmark = pytest.mark.parity
OFF = augment.Config(time_masks=0, channel_mask_fraction=0.0)
CLASSES = {"embedlink": objectives.EmbedLink, "embedlink_ctc": objectives.EmbedLinkCTC}


@dataclasses.dataclass
class Pair:
    """The same training run in both."""

    run: loop.Run
    state: step_lib.TrainState
    model: step.Model
    trainer: step.Trainer

    def batches(self, count):
        buckets = batching.bucket_lengths(self.run.examples.num_frames_N, 1)
        groups = batching.schedule(self.run.examples, 4, buckets, 1, 0)
        for _ in range(count):
            group = next(groups)
            yield batching.gather(
                self.run.examples, group.index_KB[0], group.weight_KB[0], group.max_frames
            )

    def ours(self, batches):
        """Our steps; returns the losses."""
        steps = step_lib.make_stream_steps(self.run.spec)
        losses = []
        for batch in batches:
            stacked = jax.tree.map(lambda x: np.asarray(x)[None], batch)
            self.state, metrics = steps(self.state, self.run.frozen, stacked)
            losses.append(float(metrics["loss"][0]))
        return losses

    def theirs(self, batches):
        return [float(self.trainer(torch_batch(batch))) for batch in batches]

    def arrays(self):
        """Trained weights of both, by name."""
        views = bridgeformer.all_views(self.model.projector, self.model.objective)
        ours = dict(safetensors.named_leaves(self.state.trainable))
        return {n: (np.asarray(ours[n]), a.numpy()) for n, a in bridgeformer.arrays(views).items()}


def torch_batch(batch):
    targets, counts = (
        torch.tensor(np.asarray(x)).long() for x in (batch.target_ids_BL, batch.num_targets_B)
    )
    frames = torch.tensor(np.asarray(batch.num_frames_B)).long()
    features, weight = torch.tensor(batch.features_BTE), torch.tensor(batch.weight_B)
    return objectives.Batch(features, frames, targets, counts, weight, frames, counts)


def make_pair(objective):
    run = tiny.make_run(
        objective=objective,
        projector_values={"dropout": 0.0, "positions": "rotary"},
        augment_config=OFF,
    )
    state = tiny.initial_state(run)
    shape = vars(run.spec.projector.config)
    net = bridgeformer.BridgeFormer(shape, tiny.FEATURES, tiny.WIDTH, run.spec.projector.out_rms)
    own = CLASSES[objective](vars(run.spec.objective_config), torch.tensor(run.frozen.table_VD))
    arrays = {n: torch.tensor(np.array(a)) for n, a in safetensors.named_leaves(state.trainable)}
    bridgeformer.load_arrays(bridgeformer.all_views(net, own), arrays)
    model = step.Model(net, own, vars(OFF), torch.float32).train()
    settings = vars(optimizer.Config(learning_rate=3e-3))
    return Pair(run, state, model, step.Trainer(model, settings, tiny.SCHEDULE_STEPS))


@pytest.fixture(autouse=True)
def rolled_up(monkeypatch):
    """Eight unrolled steps of the CTC recursion take long to compile and change nothing."""
    monkeypatch.setattr(ctc, "UNROLL", 1)


@pytest.mark.parametrize("objective", CLASSES)
def test_fifty_steps_lie_on_top_of_each_other_and_the_first_equal_ours(objective):
    pair = make_pair(objective)
    batches = list(pair.batches(50))
    check_readings(pair, batches[0])
    before = {name: ours for name, (ours, _) in pair.arrays().items()}
    ours, theirs = pair.ours(batches[:2]), pair.theirs(batches[:2])
    for name, (array, found) in pair.arrays().items():  # the first step has learning rate 0
        assert (array != before[name]).any(), name
        np.testing.assert_allclose(found, array, atol=1e-5, err_msg=name)
    ours, theirs = ours + pair.ours(batches[2:]), theirs + pair.theirs(batches[2:])
    np.testing.assert_allclose(theirs[:2], ours[:2], rtol=1e-5)
    np.testing.assert_allclose(theirs, ours, rtol=2e-3)
    assert ours[-1] < 0.7 * ours[0]


def check_readings(pair, batch):
    """Both read the same rows."""
    read = setup.make_reader(pair.run.spec)
    expected = read(pair.state.trainable, pair.run.frozen, batch.features_BTE, batch.num_frames_B)
    theirs = torch_batch(batch)
    rows, keep = pair.model.read(theirs.features_BTE, theirs.num_frames_B)
    np.testing.assert_array_equal(keep, expected.keep_BA)
    np.testing.assert_array_equal(rows[keep], expected.rows_BA[expected.keep_BA])
    assert keep.any()


@pytest.mark.parametrize(
    "objective, values",
    [
        ("embedlink", {"cast": "stretch", "pad_weight": 0.5, "centre": True}),
        ("embedlink_ctc", {"centre": True}),
    ],
)
def test_switches_equal_ours(objective, values):
    run = tiny.make_run(objective=objective, augment_config=OFF)
    config = run.spec.objective.Config(**values)
    batch = next(iter(batching.batches_of(run.examples, 4, 1)))
    audio = np.random.default_rng(0).normal(size=(4, 10, tiny.WIDTH)).astype(np.float32)
    valid = np.ones((4, 10), bool)
    params = run.spec.objective.init(config, jax.random.key(0), run.frozen)
    loss = jax.jit(lambda p, a: run.spec.objective.loss(config, p, a, valid, batch, run.frozen)[0])
    own = CLASSES[objective](vars(config), torch.tensor(run.frozen.table_VD))
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(torch.tensor(np.array(params[name])))
    theirs = torch_batch(batch)
    frame_rate = bridgeformer.BridgeFormer(
        vars(tiny.registry.resolve("projectors", "bridgeformer").Config(num_layers=1)), 8, 16, 1.0
    )
    theirs = dataclasses.replace(theirs, host_num_frames_B=torch.full((4,), 40))
    computed = own.compute(
        torch.tensor(audio),
        torch.tensor(valid),
        theirs.targets_BL,
        theirs.num_targets_B,
        theirs.weight_B,
    )
    found = float(own.finish(computed, theirs, frame_rate).detach())
    assert found == pytest.approx(float(loss(params, audio).mean()), rel=1e-5)


def test_learning_rates_equal_optax():
    config = optimizer.Config(warmup_fraction=0.1)
    schedule = optimizer.learning_rate(config, 40)
    found = [step.learning_rate(vars(config), 40, i) for i in range(45)]
    np.testing.assert_allclose(found, [float(schedule(i)) for i in range(45)], atol=1e-9)


def test_augmentation_hides_and_shakes_as_much_as_ours():
    torch.manual_seed(0)
    values = vars(augment.Config(time_masks=2, time_mask_fraction=0.2, noise=0.1))
    features = torch.randn(64, 100, 40) + 1
    frames = torch.full((64,), 80)
    found = step.augmented(values | {"noise": 0.0}, features, frames)
    hidden = float((found[:, :80] == 0).float().mean())
    key = jax.random.key(0)
    config = augment.Config(time_masks=2, time_mask_fraction=0.2)
    ours = augment.augment(config, key, features.numpy(), frames.numpy())[0]
    assert hidden == pytest.approx(float((np.asarray(ours)[:, :80] == 0).mean()), abs=0.02)
    shaken = step.augmented(
        values | {"time_masks": 0, "channel_mask_fraction": 0.0}, features, frames
    )
    assert float((shaken - features).std()) == pytest.approx(0.1, rel=0.1)


def test_warp_changes_lengths_and_speech_alike():
    pair = make_pair("embedlink_ctc")
    batch = torch_batch(next(pair.batches(1)))
    line = torch.arange(batch.features_BTE.shape[1]).float()[None, :, None].expand(4, -1, 3)
    batch = dataclasses.replace(batch, features_BTE=line)
    made = step.warped({"warp": 0.3}, batch, torch.Generator().manual_seed(0))
    assert made.num_frames_B.tolist() == made.host_num_frames_B.tolist()
    assert (made.num_frames_B != batch.num_frames_B).any()
    for row, new, old in zip(made.features_BTE, made.num_frames_B, batch.num_frames_B, strict=True):
        # A ramp stays a ramp from the first to the last frame.
        expected = np.linspace(0, int(old) - 1, int(new))
        np.testing.assert_allclose(row[: int(new), 0], expected, atol=1e-4)


def test_unknown_modes_are_named():
    model = make_pair("embedlink").model
    with pytest.raises(ValueError, match=r"fastest.*reduce-overhead"):
        step.Trainer(model, vars(optimizer.Config()), 10, "fastest")
    with pytest.raises(ValueError, match="needs a CUDA device"):
        step.Trainer(model, vars(optimizer.Config()), 10, "cuda-graph")
