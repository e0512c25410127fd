"""Writers of tiny checkpoints in every format we read, independent of the readers under test."""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

# ---- safetensors: the format's own bytes, by hand ------------------------------------------


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A safetensors file from numpy arrays, through the reference library."""
    from safetensors.numpy import save_file

    save_file({n: np.array(a, order="C") for n, a in arrays.items()}, path)


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """`shards` and the index that names them."""
    for file, arrays in shards.items():
        write_safetensors(folder / file, arrays)
    weight_map = {name: file for file, arrays in shards.items() for name in arrays}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ---- GGUF ----------------------------------------------------------------------------------

Kind = gguf.GGMLQuantizationType


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's reordering of q and k: halves of a head become neighbouring pairs."""
    rows, *rest = weight.shape
    return (
        weight.reshape(num_heads, 2, rows // num_heads // 2, *rest)
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, Kind]],
    tokenizer: Mapping[str, Any] | None = None,
) -> None:
    """A GGUF file; keys of `metadata` get the architecture's prefix, those of `tokenizer` theirs."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in (tokenizer or {}).items():
        _add(
            writer,
            "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}",
            value,
        )
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kind = gguf.GGUFValueType.get_type(value)
    if kind is gguf.GGUFValueType.ARRAY:
        writer.add_array(key, value)
    elif kind is gguf.GGUFValueType.INT32:
        writer.add_uint32(key, value)
    else:
        writer.add_key_value(key, value, kind)


LLAMA_METADATA = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 16,
}


def llama_arrays(rng: np.random.Generator, vocab_size: int = 96) -> dict[str, np.ndarray]:
    """Random weights of LLAMA_METADATA's sizes under Hugging Face's names, [out, in]."""
    shapes = {"model.embed_tokens.weight": (vocab_size, 64), "model.norm.weight": (64,)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (64,),
            layer + "post_attention_layernorm.weight": (64,),
            layer + "self_attn.q_proj.weight": (64, 64),
            layer + "self_attn.k_proj.weight": (32, 64),
            layer + "self_attn.v_proj.weight": (32, 64),
            layer + "self_attn.o_proj.weight": (64, 64),
            layer + "mlp.gate_proj.weight": (96, 64),
            layer + "mlp.up_proj.weight": (96, 64),
            layer + "mlp.down_proj.weight": (64, 96),
        }
    return {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def as_gguf_tensors(
    arrays: Mapping[str, np.ndarray],
    kind: Kind,
    heads: Mapping[str, int] | None = None,
    architecture: str = "llama",
) -> dict[str, tuple[np.ndarray, Kind]]:
    """What llama.cpp's converter makes of Hugging Face's tensors of the llama architecture.

    Args:
        arrays: Hugging Face's names and values.
        kind: of matrices; vectors are float32.
        heads: number of heads of 'q' and of 'k' to permute by; {} for architectures without.
        architecture: llama.cpp's name.
    """
    names = _GGUF_NAMES | (_GEMMA_NAMES if architecture == "gemma3" else {})
    heads = {"q": 4, "k": 2} if heads is None else heads
    tensors = {}
    for name, array in arrays.items():
        module, leaf = name.rsplit(".", 1)
        prefix = ""
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            prefix = f"blk.{layer}."
        projection = module.removeprefix("self_attn.").removesuffix("_proj")
        if projection in heads:
            array = permute(array, heads[projection])
        if architecture == "gemma3" and module.endswith("norm"):
            array = 1 + array
        stored = kind if array.ndim > 1 else Kind.F32
        tensors[f"{prefix}{names[module]}.{leaf}"] = (array, stored)
    return tensors


TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "We met 12 people at 7 o'clock, it's true!",
    "naïve café — déjà vu",
)


def trained_bpe(vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE tokenizer of SmolLM2's kind, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def bpe_metadata(tokenizer: Tokenizer, pre: str = "smollm") -> dict[str, Any]:
    """The tokenizer part of GGUF metadata, as llama.cpp writes it for a byte-level BPE."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if t.startswith("<|") else 1 for t in tokens],
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "add_bos_token": False,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
    }


def write_llama_gguf(path: Path, kind: Kind = Kind.Q8_0, seed: int = 0) -> dict[str, np.ndarray]:
    """A complete tiny llama file; returns its weights under Hugging Face's names."""
    tokenizer = trained_bpe()
    arrays = llama_arrays(np.random.default_rng(seed), tokenizer.get_vocab_size())
    write_gguf(
        path, "llama", LLAMA_METADATA, as_gguf_tensors(arrays, kind), bpe_metadata(tokenizer)
    )
    return arrays


# ---- CTranslate2 ---------------------------------------------------------------------------

_CT2_CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def write_ct2(
    path: Path, variables: Mapping[str, np.ndarray], *, version: int = 6, spec: str = "WhisperSpec"
) -> None:
    """A CTranslate2 model.bin."""
    out = bytearray(
        struct.pack("<I", version) + _string(spec) + struct.pack("<II", 3, len(variables))
    )
    for name, array in variables.items():
        out += _string(name) + struct.pack("<B", array.ndim)
        out += b"".join(struct.pack("<I", n) for n in array.shape)
        out += struct.pack("<BI", _CT2_CODES[array.dtype.name], array.nbytes) + array.tobytes()
    out += (
        struct.pack("<I", 1)
        + _string("decoder/projection/weight")
        + _string("decoder/embeddings/weight")
    )
    path.write_bytes(out)


def _string(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def whisper_arrays(
    rng: np.random.Generator, width: int = 8, num_layers: int = 2, vocab_size: int = 20
) -> dict[str, np.ndarray]:
    """Random Whisper weights under Hugging Face's names, float16."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.encoder.conv1.weight": (width, 80, 3),
        "model.encoder.conv1.bias": (width,),
        "model.encoder.conv2.weight": (width, width, 3),
        "model.encoder.conv2.bias": (width,),
        "model.encoder.embed_positions.weight": (50, width),
        "model.decoder.embed_positions.weight": (12, width),
        "model.decoder.embed_tokens.weight": (vocab_size, width),
    }
    for side in ("encoder", "decoder"):
        shapes |= _norm(f"model.{side}.layer_norm", width)
        for i in range(num_layers):
            layer = f"model.{side}.layers.{i}."
            shapes |= _norm(layer + "self_attn_layer_norm", width)
            shapes |= _norm(layer + "final_layer_norm", width)
            shapes |= _attention(layer + "self_attn.", width)
            shapes |= {layer + "fc1.weight": (4 * width, width), layer + "fc1.bias": (4 * width,)}
            shapes |= {layer + "fc2.weight": (width, 4 * width), layer + "fc2.bias": (width,)}
            if side == "decoder":
                shapes |= _norm(layer + "encoder_attn_layer_norm", width)
                shapes |= _attention(layer + "encoder_attn.", width)
    return {n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}{n}.weight": (width, width) for n in _PROJECTIONS
    }
    return shapes | {f"{prefix}{n}.bias": (width,) for n in _PROJECTIONS if n != "k_proj"}


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def as_ct2_variables(arrays: Mapping[str, np.ndarray], num_heads: int = 2) -> dict[str, np.ndarray]:
    """What CTranslate2's converter makes of Hugging Face's Whisper tensors."""
    heads = np.array(num_heads, np.int16)
    out: dict[str, np.ndarray] = {"encoder/num_heads": heads, "decoder/num_heads": heads}
    out["decoder/alignment_heads"] = np.arange(20, dtype=np.int16).reshape(10, 2)
    out["decoder/pre_norm"] = np.array(1, np.int8)
    for name, array in arrays.items():
        side, *rest = name.removeprefix("model.").split(".")
        leaf = rest.pop()
        if rest[0] == "layers":
            _into_layer(out, f"{side}/layer_{rest[1]}", ".".join(rest[2:]), leaf, arrays, name)
        elif rest[0] == "layer_norm":
            out[f"{side}/layer_norm/{_norm_leaf(leaf)}"] = array
        elif rest[0] == "embed_positions":
            out[f"{side}/position_encodings/encodings"] = array
        elif rest[0] == "embed_tokens":
            out[f"{side}/embeddings/weight"] = array
        else:
            out[f"{side}/{rest[0]}/{leaf}"] = array
    return out


def _norm_leaf(leaf: str) -> str:
    return {"weight": "gamma", "bias": "beta"}[leaf]


def _into_layer(
    out: dict[str, np.ndarray],
    layer: str,
    module: str,
    leaf: str,
    arrays: Mapping[str, np.ndarray],
    name: str,
) -> None:
    norms = {
        "self_attn_layer_norm": "self_attention/layer_norm",
        "encoder_attn_layer_norm": "attention/layer_norm",
        "final_layer_norm": "ffn/layer_norm",
    }
    linears = {
        "fc1": "ffn/linear_0",
        "fc2": "ffn/linear_1",
        "self_attn.out_proj": "self_attention/linear_1",
        "encoder_attn.q_proj": "attention/linear_0",
        "encoder_attn.out_proj": "attention/linear_2",
    }
    fused = {
        "self_attn.q_proj": ("self_attention/linear_0", "qkv"),
        "encoder_attn.k_proj": ("attention/linear_1", "kv"),
    }
    if module in norms:
        out[f"{layer}/{norms[module]}/{_norm_leaf(leaf)}"] = arrays[name]
    elif module in linears:
        out[f"{layer}/{linears[module]}/{leaf}"] = arrays[name]
    if module in fused:
        target, letters = fused[module]
        prefix = name.removesuffix(f"{module[-6:]}.{leaf}")
        for kind in ("weight", "bias"):
            parts = [arrays.get(f"{prefix}{c}_proj.{kind}") for c in letters]
            zero = np.zeros_like(next(p for p in parts if p is not None))
            out[f"{layer}/{target}/{kind}"] = np.concatenate(
                [zero if p is None else p for p in parts]
            )


WHISPER_TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 18, "content": "<|endoftext|>", "special": True},
        {"id": 19, "content": "<|startoftranscript|>", "special": True},
    ],
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}


def write_ct2_folder(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """model.bin, tokenizer.json and config.json; returns the weights under Hugging Face's names."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = whisper_arrays(np.random.default_rng(seed))
    write_ct2(folder / "model.bin", as_ct2_variables(arrays))
    (folder / "tokenizer.json").write_text(json.dumps(WHISPER_TOKENIZER))
    (folder / "config.json").write_text(
        json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3]})
    )
    return arrays


# ---- wheels --------------------------------------------------------------------------------


def write_wheel(
    folder: Path, module: str, files: Mapping[str, bytes], version: str = "1.0.0"
) -> Path:
    """A pip-installable wheel of one package with data files; importing it is an error."""
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    name = module.replace("_", "-")
    members = {f"{module}/{n}": data for n, data in files.items()}
    members[f"{module}/__init__.py"] = (
        b"raise RuntimeError('weights packages must not be imported')"
    )
    members[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    )
    members[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{n},,\n" for n in [*members, f"{info}/RECORD"])
    members[f"{info}/RECORD"] = record.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path
