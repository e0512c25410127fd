"""What is wrong with a config section is said in one wording, all of it at once."""

import types

import pytest

from tiny_align_jax import checks
from tiny_align_jax.adapt import fit, recipe
from tiny_align_jax.objectives import distill, embedlink, embedlink_contrastive, embedlink_ctc
from tiny_align_jax.types import ConfigError, DataError


def test_problems_name_value_and_expectation():
    config = types.SimpleNamespace(width=0, share=1.0, kind="odd", fine=1)
    assert checks.below(config, 1, "width", "fine") == ["width=0; expected 1 or more"]
    assert checks.no_fraction(config, "share") == ["share=1.0; expected 0 <= x < 1"]
    assert checks.unlisted(config, kind=("a", "b")) == ["kind='odd'; expected one of a, b"]
    assert checks.not_positive(config, "width", "fine") == ["width=0; expected a positive number"]


def test_what_is_no_number_is_below_everything():
    assert checks.below(types.SimpleNamespace(weight=float("nan")), 0, "weight")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (recipe.Config, {"learning_rate": 0.0, "decay": -1.0, "replay_weight": 1.0}),
        (recipe.Config, {"num_validation": -1, "replay_count": -1}),
        (fit.Config, {"batch_size": 0, "replay_size": -1}),
        (embedlink.Config, {"cast": "shrink", "mse_weight": -1.0}),
        (embedlink_contrastive.Config, {"initial_scale": 0.0, "table_chunk": 0}),
        (embedlink_ctc.Config, {"initial_scale": -1.0, "table_chunk": 0}),
        (distill.Config, {"temperature": 0.0, "label_weight": -1.0}),
    ],
)
def test_sections_name_every_value_that_cannot_work(kind, values):
    with pytest.raises(ConfigError) as refused:
        kind(**values)
    assert all(f"{key}={value!r}; expected" in str(refused.value) for key, value in values.items())
    for key, value in values.items():
        if isinstance(value, float):
            with pytest.raises(ConfigError, match=f"{key}=nan"):
                kind(**{key: float("nan")})


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
