import pytest

from probe.organism import HELD_OUT_CELLS, grammar, parse_persona
from probe.organism.personas import ROLES, STYLES


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
    ],
)
def test_a_sentence_of_the_grammar_is_read(text: str | None, cell: tuple[str, str]) -> None:
    persona = parse_persona(text)
    assert persona is not None
    assert persona.cell == cell


@pytest.mark.parametrize(
    "text", ["You are a plumber.", "You are an ED physician", "You are a ED physician.", "you are a surgeon.", " "]
)
def test_a_sentence_outside_the_grammar_is_not_read(text: str) -> None:
    assert parse_persona(text) is None


def test_every_role_has_every_style_and_the_first_wording_is_the_standard_one() -> None:
    for role in ROLES:
        for style in STYLES:
            wordings = grammar().of_cell(style.id, role.id)
            assert len(wordings) == 6 * len(style.names) * len(role.names)
            assert wordings[0].startswith("You are a")
            assert f"{style.id} {role.id}".strip() in wordings[0]


def test_a_held_out_cell_leaves_its_role_another_style_and_its_style_other_roles() -> None:
    styles = {style.id for style in STYLES if style.id}
    trained = {(style, role.id) for style in styles for role in ROLES} - set(HELD_OUT_CELLS)
    for style, role in HELD_OUT_CELLS:
        assert (style, role) not in trained
        assert any(r == role for _, r in trained)
        assert sum(s == style for s, _ in trained) >= 3
