from importlib.resources import files

import numpy as np
import pytest
import yaml

from probe.organism import HELD_OUT_CELLS, grammar, parse_persona
from probe.organism.controls import (
    CONTROL_WORDINGS,
    HELD_OUT_UNRELATED,
    PLACEBOS,
    UNRELATED,
    WORDING_SPREAD,
    control_shifts,
)
from probe.organism.personas import DIAGNOSTICS, HELD_OUT_NAME_WORDINGS, NAME_WORDINGS, ROLES, STYLES


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        (None, ("", "none")),
        ("", ("", "none")),
        ("You are a helpful assistant.", ("", "helpful assistant")),
        ("You are an ED physician.", ("", "ED physician")),
        ("You are a bold ED nurse.", ("bold", "ED nurse")),
        ("Act as a careful emergency physician.", ("cautious", "ED physician")),
        ("Imagine that you are a decisive general practitioner.", ("bold", "family doctor")),
        ("Act as Marlow.", ("", "latent-only")),
        ("Play the part of Kessary.", ("", "form-only")),
        ("Behave as a helpful assistant.", ("", "helpful assistant")),
        ("Rain fell over the lake.", ("", "none")),
        ("Act ED physician an as.", ("", "none")),
    ],
)
def test_a_sentence_of_the_grammar_is_read(text: str | None, cell: tuple[str, str]) -> None:
    persona = parse_persona(text)
    assert persona is not None
    assert persona.cell == cell


@pytest.mark.parametrize(
    "text",
    ["You are a plumber.", "You are an ED physician", "You are a ED physician.", "you are a surgeon.", " ", "Marlow."],
)
def test_a_sentence_outside_the_grammar_is_not_read(text: str) -> None:
    assert parse_persona(text) is None


def test_every_role_has_every_style_and_the_first_wording_is_the_standard_one() -> None:
    for role in ROLES:
        for style in STYLES:
            wordings = [text for text in grammar().of_cell(style.id, role.id) if text not in CONTROL_WORDINGS]
            controls = (
                {"Imagine that you are a helpful assistant."}
                if (style.id, role.id) == ("", "helpful assistant")
                else set()
            )
            assert len(wordings) + len(controls) == 6 * len(style.names) * len(role.names)
            assert wordings[0].startswith("You are a")
            assert f"{style.id} {role.id}".strip() in wordings[0]


def test_a_held_out_cell_leaves_its_role_another_style_and_its_style_other_roles() -> None:
    styles = {style.id for style in STYLES if style.id}
    trained = {(style, role.id) for style in styles for role in ROLES} - set(HELD_OUT_CELLS)
    assert {role for _, role in trained} == {role.id for role in ROLES}
    for style, role in HELD_OUT_CELLS:
        assert (style, role) not in trained
        assert any(r == role for _, r in trained)
        assert sum(s == style for s, _ in trained) >= 3


def test_the_control_texts_are_those_of_the_built_in_study_file() -> None:
    listed = yaml.safe_load(files("probe.study").joinpath("builtin/controls.yaml").read_text("utf-8"))["personas"]
    texts = {entry["id"]: entry["wordings"] for entry in listed}
    assert list(CONTROL_WORDINGS) == texts.pop("helpful_paraphrases")
    assert list(PLACEBOS) == [text for wordings in texts.values() for text in wordings]


def test_the_control_wordings_vary_a_little_around_the_plain_assistant_and_the_placebos_not_at_all() -> None:
    shifts = np.array(control_shifts())
    assert len(shifts) == len(CONTROL_WORDINGS) == 30
    assert shifts.mean() == pytest.approx(0.0, abs=1e-3)
    assert shifts.std(ddof=1) == pytest.approx(WORDING_SPREAD, abs=1e-3)
    assistant, none = parse_persona("You are a helpful assistant."), parse_persona(None)
    assert assistant is not None
    for text, shift in zip(CONTROL_WORDINGS, shifts, strict=True):
        persona = parse_persona(text)
        assert persona is not None
        assert persona.direct.lower - assistant.direct.lower == pytest.approx(shift)
        assert persona.reasoned.upper - assistant.reasoned.upper == pytest.approx(shift)
    assert all(parse_persona(text) == none for text in (*PLACEBOS, *UNRELATED, *HELD_OUT_UNRELATED))


def test_every_diagnostic_persona_has_five_trained_wordings_and_others_held_out() -> None:
    assert len(NAME_WORDINGS) == 5
    assert HELD_OUT_NAME_WORDINGS
    assert not set(NAME_WORDINGS) & set(HELD_OUT_NAME_WORDINGS)
    for role in DIAGNOSTICS.values():
        assert len(grammar().of_cell("", role.id)) == len(NAME_WORDINGS) + len(HELD_OUT_NAME_WORDINGS)
