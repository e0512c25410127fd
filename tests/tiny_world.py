"""A whole trained workdir in miniature: a corpus, an encoder, an LLM, an exported projector.

All weights are random; nothing is downloaded. The folders have Hugging Face's layout and names, so the
real loaders read them.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from tests import tiny_tokenizer
from tiny_align_jax import registry, testing
from tiny_align_jax.data import tokenizer, vocabulary
from tiny_align_jax.train import checkpoint
from tiny_align_jax.types import Frozen
from tiny_align_jax.weights import assets, loading, safetensors

WINDOW_S = 2.0
SENTENCES = [
    "the old dog slept near the door",
    "please bring me seven green apples",
    "we call it bear",
    "the green dog",
]
SPEAKERS = {"s1": (7, "f"), "s2": (12, "m"), "s3": (30, "f"), "s4": (31, "m")}


@dataclasses.dataclass(frozen=True)
class World:
    """Paths of the miniature."""

    workdir: pathlib.Path
    cache_dir: pathlib.Path
    encoder: pathlib.Path
    llm: pathlib.Path
    audio: pathlib.Path


def make(root: pathlib.Path, objective: str = "embedlink_ctc") -> World:
    """Builds everything below `root`."""
    world = World(root / "run", root / "cache", root / "encoder", root / "llm", root / "audio")
    rng = np.random.default_rng(0)
    make_llm(world.llm, rng)
    make_encoder(world.encoder, rng)
    manifest = make_corpus(world.audio, rng)
    export(world, manifest, objective)
    return world


def make_llm(folder: pathlib.Path, rng: np.random.Generator) -> None:
    """A two-layer Llama with the tiny tokenizer."""
    tiny_tokenizer.save(folder)
    size = len(tokenizer.load(folder))
    hf = testing.LLM_CONFIGS["llama"] | {"vocab_size": size, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(hf))
    dim, mlp, kv = hf["hidden_size"], hf["intermediate_size"], hf["hidden_size"] // 2
    shapes = {"model.embed_tokens.weight": (size, dim), "model.norm.weight": (dim,)}
    for i in range(hf["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (dim,),
            layer + "post_attention_layernorm.weight": (dim,),
            layer + "self_attn.q_proj.weight": (dim, dim),
            layer + "self_attn.k_proj.weight": (kv, dim),
            layer + "self_attn.v_proj.weight": (kv, dim),
            layer + "self_attn.o_proj.weight": (dim, dim),
            layer + "mlp.gate_proj.weight": (mlp, dim),
            layer + "mlp.up_proj.weight": (mlp, dim),
            layer + "mlp.down_proj.weight": (dim, mlp),
        }
    _save(folder, shapes, rng)


def make_encoder(folder: pathlib.Path, rng: np.random.Generator) -> None:
    """A Whisper encoder of three layers and a window of two seconds."""
    folder.mkdir(parents=True)
    hf = testing.ENCODER_CONFIGS["whisper"]
    (folder / "config.json").write_text(json.dumps(hf))
    dim, ffn = hf["d_model"], hf["encoder_ffn_dim"]
    encoder = "model.encoder."
    shapes = {
        encoder + "conv1.weight": (dim, hf["num_mel_bins"], 3),
        encoder + "conv1.bias": (dim,),
        encoder + "conv2.weight": (dim, dim, 3),
        encoder + "conv2.bias": (dim,),
        encoder + "embed_positions.weight": (hf["max_source_positions"], dim),
        encoder + "layer_norm.weight": (dim,),
        encoder + "layer_norm.bias": (dim,),
    }
    for i in range(hf["encoder_layers"]):
        layer = f"{encoder}layers.{i}."
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {layer + name + ".weight": (dim,), layer + name + ".bias": (dim,)}
        for name in ("q_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (dim, dim)}
            shapes |= {f"{layer}self_attn.{name}.bias": (dim,)}
        shapes |= {layer + "self_attn.k_proj.weight": (dim, dim)}
        shapes |= {layer + "fc1.weight": (ffn, dim), layer + "fc1.bias": (ffn,)}
        shapes |= {layer + "fc2.weight": (dim, ffn), layer + "fc2.bias": (dim,)}
    _save(folder, shapes, rng)


def _save(folder: pathlib.Path, shapes: dict[str, tuple], rng: np.random.Generator) -> None:
    tensors = {
        name: np.ones(shape, np.float32)
        if name.endswith("norm.weight")
        else rng.normal(size=shape).astype(np.float32) * 0.3
        for name, shape in shapes.items()
    }
    safetensors.save_tree(folder / "model.safetensors", tensors)


def make_corpus(folder: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """Two seconds or less of noise an utterance; one silent file among the test utterances."""
    folder.mkdir(parents=True)
    rows = []
    for i, (speaker, (age, sex)) in enumerate(SPEAKERS.items()):
        for j in range(3):
            name = f"{speaker}_{j}.wav"
            samples = rng.normal(size=16000 + 4000 * j).astype(np.float32) * 0.1
            if (speaker, j) == ("s4", 2):
                samples[:] = 0
            soundfile.write(folder / name, samples, 16000)
            text = SENTENCES[(i + j) % len(SENTENCES)]
            row = {"audio": name, "text": text, "speaker": speaker, "age": age, "sex": sex}
            rows.append(row | {"split": "test"})
    soundfile.write(folder / "train.wav", rng.normal(size=8000).astype(np.float32) * 0.1, 16000)
    rows.append({"audio": "train.wav", "text": "a b", "speaker": "s0", "split": "train"})
    manifest = folder / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def export(world: World, manifest: pathlib.Path, objective: str) -> None:
    """Writes the workdir that a training run of zero steps would leave."""
    encoder = assets.resolve(str(world.encoder), world.cache_dir)
    llm = assets.resolve(str(world.llm), world.cache_dir)
    words = tokenizer.load(world.llm)
    rows = vocabulary.build(
        "pieces", SENTENCES, words.token_strings(), words.eos_id, words, min_count=1
    )
    table = loading.embedding_rows(llm, rows.row_ids)
    shape = {"num_layers": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32, "stack": 4}
    if objective == "embedlink":
        shape |= {"pooling": "adaptive", "num_tokens": 8}
    card = {
        "projector": {"name": "bridgeformer", "bridgeformer": shape},
        "objective": {"name": objective},
        "encoder": {
            "name": str(world.encoder),
            "fingerprint": encoder.fingerprint,
            "window_s": WINDOW_S,
            "layers": [-1],
            "dtype": "float32",
            "dim": 16,
        },
        "llm": {
            "name": str(world.llm),
            "fingerprint": llm.fingerprint,
            "dim": table.shape[1],
            "out_rms": float(np.sqrt(np.mean(table**2))),
        },
        "vocabulary": rows.to_json(),
        "versions": {},
        "step": 0,
    }
    world.workdir.mkdir(parents=True)
    checkpoint.export(world.workdir, _params(card, table, rows), card)
    config = {
        "dataset": {"name": "jsonl", "jsonl": {"manifest": str(manifest)}},
        "split": {
            "train": "train",
            "test": "test",
            "validation": "",
            "validation_speakers": 0,
            "train_speakers": 0,
            "train_fraction": 1.0,
            "seed": 0,
        },
        "encoder": {
            "asset": str(world.encoder),
            "window_s": WINDOW_S,
            "layers": [-1],
            "dtype": "float32",
        },
        "features": {"batch_size": 4, "too_long": "error", "bad_audio": "skip"},
        "llm": {"asset": str(world.llm), "dtype": "float32"},
        "prompt": {
            "instruction": "Say: {audio}",
            "examples": [["we call", "we call"]],
        },
    }
    (world.workdir / "config.json").write_text(json.dumps(config))


def _params(card, table, rows):
    module, config = registry.from_section("projectors", card["projector"])
    objective, objective_config = registry.from_section("objectives", card["objective"])
    projector = module.Projector(config, card["llm"]["dim"], card["llm"]["out_rms"])
    features, mask = jnp.zeros((1, 8, card["encoder"]["dim"])), jnp.ones((1, 8), bool)
    frozen = Frozen(table_VD=table, row_ids_V=rows.row_ids)
    return {
        "projector": jax.jit(projector.init)(jax.random.key(0), features, mask)["params"],
        "objective": objective.init(objective_config, jax.random.key(1), frozen),
    }
