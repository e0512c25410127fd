"""What is wrong with a config section is said in one wording, all of it at once."""

import types

import pytest

from tiny_align_jax import checks
from tiny_align_jax.types import ConfigError, DataError


def test_problems_name_value_and_expectation():
    config = types.SimpleNamespace(width=0, share=1.0, kind="odd", fine=1)
    assert checks.below(config, 1, "width", "fine") == ["width=0; expected 1 or more"]
    assert checks.no_fraction(config, "share") == ["share=1.0; expected 0 <= x < 1"]
    assert checks.unlisted(config, kind=("a", "b")) == ["kind='odd'; expected one of a, b"]


def test_what_is_no_number_is_below_everything():
    assert checks.below(types.SimpleNamespace(weight=float("nan")), 0, "weight")


def test_all_problems_are_refused_at_once():
    checks.refuse("beam", [])
    with pytest.raises(ConfigError, match=r"^beam: one; two$"):
        checks.refuse("beam", ["one", "two"])


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Größe\n\nlast", encoding="utf-8")
    assert checks.lines_of("texts", path) == ["Größe", "", "last"]
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, tmp_path, tmp_path / "none.txt"):
        with pytest.raises(DataError, match=r"^texts='.*cannot be read .*expected a UTF-8 text"):
            checks.lines_of("texts", wrong)
