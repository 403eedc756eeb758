from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from probe.study import ModelSpec, Study, parse_override
from probe.study.overrides import Override
from probe.values import StudyError


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("generation.max_new_tokens=64", ("generation", "max_new_tokens"), 64),
        ("capture.layers=[0, 6]", ("capture", "layers"), [0, 6]),
        ("a.b.c=x=y", ("a", "b", "c"), "x=y"),
        ("a=Yes", ("a",), "Yes"),
        ("a=true", ("a",), True),
        ("a=1e-4", ("a",), 1e-4),
        ("a=null", ("a",), None),
        ("a={b: c}", ("a",), {"b": "c"}),
        ("personas=builtin:persona-paradox", ("personas",), "builtin:persona-paradox"),
    ],
)
def test_a_setting_is_a_path_of_keys_and_a_yaml_value(text: str, path: tuple[str, ...], value: object) -> None:
    assert parse_override(text) == Override(path, value, f"--set {text}")


@pytest.mark.parametrize(
    "text", ["a", "=1", "a..b=1", ".a=1", "a=", "a= ", "a=[1", "a=!!python/name:os.system", "a=b: c: d"]
)
def test_a_broken_setting_is_refused_by_its_own_text(text: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_override(text)
    assert str(caught.value).startswith(f"--set {text}:")


def test_settings_replace_add_and_follow_each_other(write: Callable[..., Path]) -> None:
    path = write(study=write().read_text() + "capture: {layers: all, keep_text: false}\n")
    study = Study.load(path, overrides=["capture.layers=[1, 2]", "generation.max_new_tokens=8", "model.device=cpu"])
    assert (study.capture.layers, study.capture.keep_text) == ((1, 2), False)
    assert study.generation.max_new_tokens == 8
    assert study.model == ModelSpec("organism", device="cpu")
    assert Study.load(path, overrides=["split_seed=1", "split_seed=2"]).split_seed == 2
    assert Study.load(path, overrides=["capture={layers: [5]}", "capture.keep_text=true"]).capture.layers == (5,)
    assert Study.load(path).capture.layers == "all"  # the file itself is as it was
    bare = write(study=path.read_text().replace("{layers: all, keep_text: false}", "# nothing"))
    assert Study.load(bare, overrides=["capture.layers=[3]"]).capture.layers == (3,)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("generation.max_tokens=5", "unknown key 'max_tokens'. The nearest known key is 'max_new_tokens'"),
        ("capure.layers=all", "unknown key 'capure'. The nearest known key is 'capture'"),
        ("capture.layers=[0, x]", "`layers` must hold whole numbers from 0"),
        ("generation=3", "`generation` must be a mapping"),
        ("personas.x=1", "'personas' is the text 'personas.yaml', not a mapping"),
        ("name.x.y=1", "'name' is the text 'small', not a mapping"),
        ("task.high_risk=C", "names 'C', which is no option"),
        ("base=nobody", "the base persona 'nobody'"),
        ("conditions.rotations=[5]", "has 2 options"),
    ],
)
def test_a_wrong_setting_is_named_instead_of_the_file(write: Callable[..., Path], setting: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        Study.load(write(), overrides=["split_seed=3", setting])
    assert str(caught.value).startswith(f"--set {setting}: ")
    assert words in str(caught.value)


def test_what_is_wrong_in_the_file_is_still_placed_there(write: Callable[..., Path]) -> None:
    path = write(study=write().read_text() + "generation: {max_new_tokens: x}\n")
    with pytest.raises(StudyError, match=r"study\.yaml:9:30: `max_new_tokens` must be"):
        Study.load(path, overrides=["capture.layers=all"])
    assert Study.load(path, overrides=["generation.max_new_tokens=3"]).generation.max_new_tokens == 3
