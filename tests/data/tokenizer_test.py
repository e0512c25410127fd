"""The tokenizer: ids, stop ids from every source, streaming text, refusals."""

import contextlib
import json
import subprocess
import sys

import pytest
import transformers

from tests import tiny_tokenizer
from tiny_align_jax.data import tokenizer
from tiny_align_jax.types import AssetError


@pytest.fixture
def folder(tmp_path):
    return tiny_tokenizer.save(tmp_path / "llm")


def test_round_trip_keeps_spaces(folder):
    tok = tokenizer.load(folder)
    for text in (" we call it bear", "Grüße,  zwei  Räume", "naïve 日本"):
        assert tok.decode(tok.encode(text)) == text


def test_nothing_is_added_and_control_tokens_are_recognised(folder):
    tok = tokenizer.load(folder)
    assert tok.encode("") == []
    assert tok.encode("<|im_start|>we<|im_end|>")[0] == tok.bos_id == 1
    assert tok.decode(tok.encode("<|im_start|>we<|im_end|>")) == "we"


def test_token_strings_spell_every_encoded_text(folder):
    tok = tokenizer.load(folder)
    strings = tok.token_strings()
    assert len(strings) == len(tok)
    assert strings[:5] == ("",) * 5  # control tokens
    text = " please bring the old dog"
    assert "".join(strings[i] for i in tok.encode(text)) == text
    assert any(s.startswith(" ") for s in strings)
    some = tok.encode(text)
    assert tok.token_strings(some) == tuple(strings[i] for i in some)
    assert tok.token_strings([]) == ()


def test_stop_ids_come_from_every_source(tmp_path):
    folder = tiny_tokenizer.save(
        tmp_path / "llm", tiny_tokenizer.NO_SYSTEM, eos_token="<|endoftext|>"
    )
    ends_turn = tokenizer.load(folder).encode("<end_of_turn>")[0]
    assert tokenizer.load(folder).stop_ids == (0, 2, ends_turn)  # tokenizer, config.json, template
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    assert tokenizer.load(folder).stop_ids == (0, 1, 2, 3, ends_turn)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert tokenizer.load(folder).stop_ids == (0, 2, ends_turn)


def test_an_ordinary_token_never_ends_a_turn(tmp_path):
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    folder = tiny_tokenizer.save(tmp_path / "llm", plain)
    assert tokenizer.load(folder).stop_ids == (2,)


def test_stream_waits_for_whole_characters(folder):
    tok = tokenizer.load(folder)
    text = "bear 日本 ü"
    stream = tokenizer.TextStream(tok)
    pieces = [stream.push(i) for i in tok.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in p for p in pieces)
    assert len([p for p in pieces if p]) > 3
    assert stream.flush() == ""


def test_stream_cut_inside_a_character(folder):
    tok = tokenizer.load(folder)
    stream = tokenizer.TextStream(tok)
    pieces = [stream.push(i) for i in tok.encode("a日")[:-1]]
    assert "".join(pieces) == "a"
    assert stream.flush() == "\ufffd"


def test_a_plain_class_is_read_without_torch_and_as_auto_tokenizer_reads_it(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    auto = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    other = tokenizer.Tokenizer(auto)
    plain = tokenizer.load(folder)
    text = "<|im_start|>we call  it bear<|im_end|> Grüße"
    assert plain.encode(text) == other.encode(text)
    assert plain.token_strings() == other.token_strings()
    assert plain.special_strings == other.special_strings
    code = (
        "import sys; from tiny_align_jax.data import tokenizer; tokenizer.load(sys.argv[1]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_a_broken_config_is_named(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(AssetError, match="cannot read the tokenizer in"):
        tokenizer.load(folder)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(AssetError, match=r"no tokenizer.json.*fetch_assets"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_corrupt_files_are_named(folder, name):
    (folder / name).write_text('{"trunc')
    with pytest.raises(AssetError, match=name.split(".")[0].split("_")[0]):
        tokenizer.load(folder)


def test_no_end_of_text_token_is_refused(tmp_path):
    folder = tiny_tokenizer.save(tmp_path / "llm", eos_token=None)
    with pytest.raises(AssetError, match="no eos_token"):
        tokenizer.load(folder)


def test_code_in_the_folder_is_not_run(tmp_path):
    remote = {"auto_map": {"AutoTokenizer": ["custom.Evil", None]}, "tokenizer_class": "Evil"}
    folder = tiny_tokenizer.save(tmp_path / "llm", **remote)
    flag = tmp_path / "ran"
    (folder / "custom.py").write_text(f"open({str(flag)!r}, 'w')\nclass Evil: pass\n")
    with contextlib.suppress(AssetError):
        tokenizer.load(folder)
    assert not flag.exists()
