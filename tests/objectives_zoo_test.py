"""The further objectives against arithmetic done by hand, and the LLM inside training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.tiny import initial_state, make_run
from tiny_align_jax import joined, registry, testing
from tiny_align_jax.objectives import distill, embedlink_contrastive, next_token
from tiny_align_jax.train import loop, setup, step, through_llm
from tiny_align_jax.types import Batch, ConfigError, Frozen

NUM_ROWS = 12


def _batch(targets, length=4, weight=None):
    ids = np.zeros((len(targets), length), np.int32)
    for row, target in zip(ids, targets, strict=True):
        row[: len(target)] = target
    count = np.array([len(t) for t in targets], np.int32)
    return Batch(
        features_BTE=np.zeros((len(targets), 1, 1), np.float32),
        num_frames_B=np.ones(len(targets), np.int32),
        target_ids_BL=ids,
        num_targets_B=count,
        weight_B=np.ones(len(targets), np.float32) if weight is None else np.array(weight),
        index_B=np.arange(len(targets), dtype=np.int32),
    )


# ---- contrastive ------------------------------------------------------------------------------


def _contrastive(**values):
    rng = np.random.default_rng(0)
    frozen = Frozen(
        table_VD=rng.normal(size=(NUM_ROWS, 6)).astype(np.float32),
        row_ids_V=np.arange(NUM_ROWS, dtype=np.int32),
    )
    audio = rng.normal(size=(2, 5, 6)).astype(np.float32)
    config = embedlink_contrastive.Config(**values)
    params = embedlink_contrastive.init(config, jax.random.key(0), frozen)
    mask = np.ones((2, 5), bool)
    loss, _ = embedlink_contrastive.loss(
        config, params, audio, mask, _batch([[3, 7], [5, 5, 2]]), frozen
    )
    return np.asarray(loss), audio, frozen


@pytest.mark.parametrize("chunk", [5, 8192])
def test_contrastive_is_the_cross_entropy_over_the_whole_table(chunk):
    loss, audio, frozen = _contrastive(initial_scale=7.0, table_chunk=chunk)
    rows = np.array([[3, 7, 0, 0, 0], [5, 5, 2, 0, 0]])
    unit = audio / np.linalg.norm(audio, axis=-1, keepdims=True)
    table = frozen.table_VD / np.linalg.norm(frozen.table_VD, axis=-1, keepdims=True)
    logits = 7.0 * unit @ table.T
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probs, rows[..., None], -1)[..., 0].mean(-1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_sampled_negatives_stand_for_all_rows():
    whole, *_ = _contrastive(initial_scale=3.0)
    sampled, *_ = _contrastive(initial_scale=3.0, num_negatives=4096)
    few, *_ = _contrastive(initial_scale=3.0, num_negatives=2)
    np.testing.assert_allclose(sampled, whole, rtol=0.03)
    assert np.isfinite(few).all() and np.abs(few - whole).max() > 1e-3


def test_contrastive_learns(tmp_path):
    run = make_run(
        objective="embedlink_contrastive",
        projector_values={"pooling": "adaptive", "num_tokens": 8},
        num_steps=60,
        num_buckets=1,
        resident="always",
    )
    state, losses = initial_state(run), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "log_group", lambda *args: args[3] and losses.append(args[3]["loss"]))
        loop.fit(run, state, tmp_path, progress=False)
    assert np.mean(losses[-10:]) < 0.8 * float(losses[0][0])


# ---- through the LLM --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm():
    module = registry.resolve("llms", "llama")
    config = module.config_from_hf(testing.LLM_CONFIGS["llama"])
    model = module.LLM(config, jnp.float32)
    params = jax.jit(model.init)(
        jax.random.key(1),
        jnp.zeros((1, 2, config.dim)),
        jnp.arange(2)[None],
        jnp.ones((1, 2), bool),
    )["params"]
    params = jax.tree.map(
        lambda p: p * 4 if p.ndim > 2 else p, params
    )  # a random LLM with opinions
    row_ids = np.array([2, *range(40, 40 + NUM_ROWS - 1)], np.int32)
    frozen = Frozen(
        table_VD=np.asarray(module.embed(config, params, row_ids)),
        row_ids_V=row_ids,
        llm=params,
        prefix_ids_P=np.array([5, 6, 7], np.int32),
        suffix_ids_P=np.array([8, 9], np.int32),
        slot_ids_V=row_ids,
    )
    return (module, config), frozen


F32 = {"llm_dtype": "float32", "remat": False}


def _audio(frozen, places=6, seed=3):
    audio = np.random.default_rng(seed).normal(size=(2, places, frozen.table_VD.shape[1])) * 0.1
    return audio.astype(np.float32), np.arange(places)[None] < np.array([[4], [2]])


def _by_hand(llm, frozen, audio, target):
    """Mean cross-entropy of one utterance in one sequence without any padding."""
    module, config = llm
    answer = [int(frozen.row_ids_V[t]) for t in target]
    ids = lambda x: np.asarray(module.embed(config, frozen.llm, np.array(x, np.int32)))  # noqa: E731
    parts = [ids(frozen.prefix_ids_P), audio, ids(frozen.suffix_ids_P), ids(answer)]
    sequence = np.concatenate(parts)[None]
    length = sequence.shape[1]
    logits, _ = module.LLM(config, jnp.float32).apply(
        {"params": frozen.llm}, sequence, jnp.arange(length)[None], jnp.ones((1, length), bool)
    )
    log_probs = jax.nn.log_softmax(logits[0, length - len(answer) - 1 :])
    wanted = [*answer, 2]
    return -np.mean([log_probs[i, token] for i, token in enumerate(wanted)])


def test_next_token_equals_each_utterance_alone(llm):
    parts, frozen = llm
    audio, mask = _audio(frozen)
    targets = [[3, 7, 1], [5]]
    loss, metrics = next_token.loss(
        next_token.Config(**F32), {}, audio, mask, _batch(targets), frozen, llm=parts
    )
    for row in range(2):
        expected = _by_hand(parts, frozen, audio[row, mask[row]], targets[row])
        np.testing.assert_allclose(loss[row], expected, rtol=1e-4)
    assert 0 <= metrics["answer_accuracy"] <= 1


def test_what_is_masked_and_rematerialised_changes_nothing(llm):
    parts, frozen = llm
    audio, mask = _audio(frozen)
    longer = np.concatenate([audio, np.full_like(audio, 1e3)], axis=1)
    longer_mask = np.concatenate([mask, np.zeros_like(mask)], axis=1)
    config, targets = next_token.Config(**F32), [[3, 7, 1], [5]]

    def run(config, audio, mask, length):
        def total(audio):
            loss, _ = next_token.loss(
                config, {}, audio, mask, _batch(targets, length), frozen, llm=parts
            )
            return loss.sum()

        return jax.jit(jax.value_and_grad(total))(audio)

    loss, grad = run(config, audio, mask, 4)
    padded_loss, padded_grad = run(dataclasses.replace(config, remat=True), longer, longer_mask, 7)
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(padded_grad[:, :6], grad, atol=1e-5)
    np.testing.assert_array_equal(padded_grad[:, 6:], 0)
    assert (np.abs(grad).max(-1)[mask] > 0).all() and np.isfinite(grad).all()
    half, _ = run(next_token.Config(), audio, mask, 4)
    np.testing.assert_allclose(half, loss, rtol=0.05)


def test_what_a_gpu_does_otherwise_changes_nothing(llm, monkeypatch):
    parts, frozen = llm
    audio, mask = _audio(frozen)
    config, batch = next_token.Config(**F32), _batch([[3, 7, 1], [5]])

    def run(frozen):
        def total(audio):
            return next_token.loss(config, {}, audio, mask, batch, frozen, llm=parts)[0].sum()

        return jax.jit(jax.value_and_grad(total))(audio)

    loss, grad = run(frozen)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    whole = frozen.replace(llm=joined.join(frozen.llm))  # as `through_llm.add_llm` does there
    prepared = step.with_constants(next_token, config, whole, parts)
    assert prepared.constants["prefix"]["k"].shape[3] == len(frozen.prefix_ids_P)
    other_loss, other_grad = run(prepared)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(other_grad, grad, atol=1e-5)


def test_a_prompt_may_begin_with_the_audio(llm):
    parts, frozen = llm
    audio, mask = _audio(frozen)
    frozen = frozen.replace(prefix_ids_P=np.array([], np.int32))
    config, batch = next_token.Config(**F32), _batch([[3, 7, 1], [5]])
    loss, _ = next_token.loss(config, {}, audio, mask, batch, frozen, llm=parts)
    expected = _by_hand(parts, frozen, audio[1, mask[1]], [5])
    np.testing.assert_allclose(loss[1], expected, rtol=1e-4)


def test_distillation_is_zero_where_the_audio_is_the_text(llm):
    parts, frozen = llm
    slot_ids = frozen.row_ids_V + 20  # another token where the transcript begins in the slot
    frozen = frozen.replace(slot_ids_V=slot_ids)
    batch = _batch([[3, 7, 1], [5, 2]])
    module, config = parts
    ids = frozen.row_ids_V[batch.target_ids_BL]
    ids[:, 0] = slot_ids[batch.target_ids_BL[:, 0]]
    audio = np.asarray(module.embed(config, frozen.llm, ids))
    mask = np.arange(4)[None] < batch.num_targets_B[:, None]
    loss, metrics = distill.loss(distill.Config(**F32), {}, audio, mask, batch, frozen, llm=parts)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert metrics["answer_accuracy"] == metrics["teacher_accuracy"]
    other, _ = distill.loss(distill.Config(**F32), {}, audio[::-1], mask, batch, frozen, llm=parts)
    assert (other > 1e-3).all()
    labelled, _ = distill.loss(
        distill.Config(label_weight=1.0, **F32), {}, audio, mask, batch, frozen, llm=parts
    )
    alone, _ = next_token.loss(next_token.Config(**F32), {}, audio, mask, batch, frozen, llm=parts)
    np.testing.assert_allclose(labelled, alone, rtol=1e-4)


def test_the_whole_step_trains_through_the_llm(llm, tmp_path):
    parts, frozen = llm
    run = make_run(objective="next_token", num_steps=40, num_buckets=1, resident="always")
    spec = dataclasses.replace(
        run.spec,
        llm=parts,
        objective_config=next_token.Config(**F32),
        projector=run.spec.projector.clone(out_dim=frozen.table_VD.shape[1], out_rms=0.1),
    )
    run = dataclasses.replace(
        run,
        spec=spec,
        frozen=frozen,
        config=dataclasses.replace(run.config, trainable=("projector/.*",)),
    )
    before = [np.array(leaf) for leaf in jax.tree.leaves(frozen.llm)]
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "log_group", lambda *args: args[3] and losses.append(args[3]["loss"]))
        loop.fit(run, initial_state(run), tmp_path, progress=False)
    # A random LLM over 97 tokens: the projector can only make the answers' tokens likelier.
    assert np.mean(losses[-5:]) < 0.97 * float(losses[0][0])
    for a, b in zip(before, jax.tree.leaves(frozen.llm), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what cannot be ---------------------------------------------------------------------------


def test_refusals(llm):
    _, frozen = llm
    audio, mask = _audio(frozen)
    with pytest.raises(ConfigError, match="none was loaded"):
        next_token.loss(next_token.Config(), {}, audio, mask, _batch([[1], [2]]), frozen)
    with pytest.raises(ConfigError, match=r"temperature=0.*label_weight=-1.*llm_dtype='int8'"):
        distill.Config(temperature=0, label_weight=-1, llm_dtype="int8")
    with pytest.raises(ConfigError, match="num_negatives=-2"):
        embedlink_contrastive.Config(num_negatives=-2)
    with pytest.raises(ConfigError, match=r"vocabulary\.kind to 'seen' or 'full'"):
        through_llm.vocabulary_tokenizer(next_token, "pieces", None)


@pytest.mark.parametrize("name", ["embedlink", "embedlink_contrastive"])
def test_a_projector_at_frame_rate_does_not_fit_token_by_token_matching(name):
    objective = registry.resolve("objectives", name)
    for projector in ("mlp", "qformer"):
        module = registry.resolve("projectors", projector)
        moving = {"window": 4} if projector == "qformer" else {}
        fixed = {} if projector == "qformer" else {"pooling": "adaptive"}
        setup.require_fit(module, module.Config(**fixed), objective)
        with pytest.raises(
            ConfigError, match=f"{name}.*{projector} gives .* pooling to 'adaptive'"
        ):
            setup.require_fit(module, module.Config(**moving), objective)
