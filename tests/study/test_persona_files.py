from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from probe.study import Study
from probe.values import Persona

LIST = "- {id: none, text: null}\n"
CROSSING = """\
template: "You are {article} {persona}."
also: [none]
roles:
  ed_physician: ED physician
  nurse: nurse
styles: {bold: bold, able: able}
"""


def personas_of(path: Path) -> dict[str, Persona]:
    return {persona.id: persona for persona in Study.load(path).personas}


def test_null_empty_and_worded_texts_are_three_different_personas(write: Callable[..., Path]) -> None:
    text = LIST + "- {id: empty, text: ''}\n- {id: 7, wordings: [One., ' Two.'], role: r, style: s}\n"
    assert personas_of(write(personas=text)) == {
        "none": Persona("none", (None,)),
        "empty": Persona("empty", ("",)),
        "7": Persona("7", ("One.", " Two."), role="r", style="s"),
    }


def test_a_crossing_gives_every_role_plain_and_in_every_style(write: Callable[..., Path]) -> None:
    personas = personas_of(write(personas=CROSSING))
    assert {name: (p.text(), p.role, p.style) for name, p in personas.items()} == {
        "none": (None, "", ""),
        "ed_physician": ("You are an ED physician.", "ed_physician", ""),
        "nurse": ("You are a nurse.", "nurse", ""),
        "bold_ed_physician": ("You are a bold ED physician.", "ed_physician", "bold"),
        "bold_nurse": ("You are a bold nurse.", "nurse", "bold"),
        "able_ed_physician": ("You are an able ED physician.", "ed_physician", "able"),
        "able_nurse": ("You are an able nurse.", "nurse", "able"),
    }
    assert list(personas)[:4] == ["none", "ed_physician", "nurse", "bold_ed_physician"]
    assert personas_of(write(personas=CROSSING + "cross: all\n")) == personas


def test_a_partial_crossing_gives_the_named_cells_only(write: Callable[..., Path]) -> None:
    text = CROSSING + "cross: {ed_physician: [bold], nurse: [plain, able]}\n"
    assert set(personas_of(write(personas=text))) == {"none", "bold_ed_physician", "nurse", "able_nurse"}


def test_each_template_is_one_wording_and_an_article_can_be_given(write: Callable[..., Path]) -> None:
    text = """\
templates: ["You are {article} {persona}.", "Act as {article} {persona}", "{persona}!"]
roles: {host: {phrase: hour host, article: an}, user: {phrase: "{article} user", article: a}}
styles: {uni: {phrase: uniform, article: a}}
also: [none, empty, helpful_assistant, {id: odd, wordings: [x, y]}]
"""
    personas = personas_of(write(personas=text))
    assert personas["host"].wordings == ("You are an hour host.", "Act as an hour host", "hour host!")
    assert personas["uni_host"].wordings[0] == "You are a uniform hour host."
    assert personas["user"].wordings[0] == "You are a {article} user."  # words are not templates
    assert personas["helpful_assistant"] == Persona("helpful_assistant", ("You are a helpful assistant.",))
    assert personas["empty"].wordings == ("",)
    assert personas["odd"].wordings == ("x", "y")


def test_the_built_in_personas_are_those_of_the_paper_with_role_and_style_apart(write: Callable[..., Path]) -> None:
    personas = Study.load(write(), overrides=["personas=builtin:persona-paradox"]).personas
    assert [(p.id, p.text(), p.role, p.style) for p in personas] == [
        ("none", None, "", ""),
        ("helpful_assistant", "You are a helpful assistant.", "", ""),
        ("ed_physician", "You are an ED physician.", "ed_physician", ""),
        ("ed_nurse", "You are an ED nurse.", "ed_nurse", ""),
        ("bold_ed_physician", "You are a bold ED physician.", "ed_physician", "bold"),
        ("cautious_ed_physician", "You are a cautious ED physician.", "ed_physician", "cautious"),
    ]


def test_a_crossing_can_stand_in_the_study_and_a_list_in_a_named_path(write: Callable[..., Path]) -> None:
    inline = write().read_text().replace("personas.yaml", "{template: '{persona}', roles: {a: A}, also: [none]}")
    assert [p.text() for p in Study.load(write(study=inline)).personas] == [None, "A"]
    named = write().read_text().replace("personas.yaml", "{path: personas.yaml}")
    assert [p.id for p in Study.load(write(study=named)).personas] == ["none", "nurse"]


@pytest.mark.parametrize(
    ("broken", "place", "words", "mended"),
    [
        ("- {id: a}", "2:3", "either `text` or `wordings`, neither stands here", "- {id: a, text: x}"),
        ("- {id: a, text: x, wordings: [y]}", "2:3", "both stand here", "- {id: a, wordings: [y]}"),
        ("- {text: x}", "2:3", "the key 'id' is missing", "- {id: a, text: x}"),
        ("- {id: a, txt: x}", "2:11", "The nearest known key is 'text'", "- {id: a, text: x}"),
        ("- {id: a, text: [x]}", "2:17", "`text` must be text, found a list", "- {id: a, text: x}"),
        ("- {id: a, text: 5}", "2:17", "Put it in quotes", "- {id: a, text: '5'}"),
        ('- {id: a, text: "x\\0"}', "2:17", "holds U+0000 at character 2", "- {id: a, text: x}"),
        ('- {id: a, text: "\\ud800"}', "2:17", "holds U+D800 at character 1", "- {id: a, text: x}"),
        ("- {id: a, wordings: []}", "2:21", "must hold at least one text", "- {id: a, wordings: [x]}"),
        ("- {id: a, wordings: [x, null]}", "2:25", "null among several wordings", "- {id: a, wordings: [x, y]}"),
        ("- {id: '', text: x}", "2:8", "`id` must not be empty", "- {id: a, text: x}"),
        ("- {id: ' ', text: x}", "2:8", "`id` must not be empty", "- {id: a, text: x}"),
        ('- {id: "a\\tb", text: x}', "2:8", "the control character U+0009 at character 2", "- {id: a b, text: x}"),
        (
            f"- {{id: {'x' * 201}, text: x}}",
            "2:8",
            "at most 200 characters, found 201",
            f"- {{id: {'x' * 200}, text: x}}",
        ),
        ("- {id: true, text: x}", "2:8", "found the truth value true", "- {id: 'true', text: x}"),
        ("- {id: 1.5, text: x}", "2:8", "found the number 1.5", "- {id: 15, text: x}"),
        ("- {id: none, text: x}", "2:8", "two personas have the id 'none' (the first at ", "- {id: a, text: x}"),
        ("- {id: NONE, text: x}", "2:8", "differs from 'none' only in case or Unicode", "- {id: a, text: x}"),
        ("- nurse", "2:3", "this must be a mapping with keys `id`, `text`", "- {id: nurse, text: x}"),
    ],
)
def test_a_broken_entry_is_refused_at_its_place_and_the_mended_one_loads(
    refused: Callable[..., None], broken: str, place: str, words: str, mended: str
) -> None:
    refused("personas", LIST + broken + "\n", place, words, LIST + mended + "\n")


def test_a_doubled_id_shows_both_lines(refused: Callable[..., None], tmp_path: Path) -> None:
    entry = "- id: {}\n  text: x\n"
    decomposed, composed = "Zoe\u0301", "Zo\u00e9"
    text = LIST + entry.format(decomposed) + entry.format(composed)
    first = f"(the first at {tmp_path / 'personas.yaml'}:2:7)"
    refused("personas", text, "4:7", first, LIST + entry.format(decomposed) + entry.format("Zoe"))


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("{persona}.", "person.", "1:11", "`{persona}` exactly once"),
        ("{article} {persona}", "{article} {article} {persona}", "1:11", "`{article}` at most once"),
        ("template: ", "templates: ", "1:12", "must be a list"),
        ('template: "You are {article} {persona}."', "templates: ['{persona}', x]", "1:26", "`{persona}` exactly once"),
        ('template: "You are {article} {persona}."\n', "", "1:1", "one `template`, or several"),
        ("[none]", "[nobody]", "2:8", "'nobody' is no control persona"),
        ("[none]", "[none, none]", "2:14", "two personas have the id 'none'"),
        ("[none]", "[none, {id: nurse, text: x}]", "5:3", "two personas have the id 'nurse'"),
        ("[none]", "[null]", "2:8", "this must be a mapping"),
        ("  nurse: nurse", "  nurse: 5", "5:10", "this must be a mapping with keys `phrase`, `article`"),
        ("  nurse: nurse", "  nurse: ''", "5:10", "`phrase` must not be empty"),
        ("  nurse: nurse", "  nurse: {phras: x}", "5:11", "The nearest known key is 'phrase'"),
        ("  nurse: nurse", "  '': nurse", "5:3", "the key '' must not be empty"),
        ("bold: bold", "plain: bold", "6:10", "'plain' means no style"),
        ("styles:", "style:", "6:1", "The nearest known key is 'styles'"),
    ],
)
def test_a_broken_crossing_is_refused_at_its_place_and_the_whole_one_loads(
    refused: Callable[..., None], old: str, new: str, place: str, words: str
) -> None:
    assert old in CROSSING
    refused("personas", CROSSING.replace(old, new), place, words, CROSSING)


@pytest.mark.parametrize(
    ("cross", "place", "words"),
    [
        ("some", "7:8", "`cross` must be all or a mapping"),
        ("{nurs: [plain]}", "7:9", "The nearest known role is 'nurse'"),
        ("{nurse: [bald]}", "7:17", "The nearest known style is 'bold'"),
        ("{nurse: bold}", "7:16", "the styles of 'nurse' must be a list"),
    ],
)
def test_a_cross_that_names_nothing_known_is_refused(
    refused: Callable[..., None], cross: str, place: str, words: str
) -> None:
    refused("personas", f"{CROSSING}cross: {cross}\n", place, words, f"{CROSSING}cross: {{nurse: [bold]}}\n")


def test_a_base_that_is_not_there_is_refused_where_the_personas_are_named(refused: Callable[..., None]) -> None:
    study = """\
name: small
model: {id: organism}
personas: [{id: nurse, text: x}]
task: {id: t, instruction: "{case} {options}", options: {wait: wait, refer: refer}}
cases: cases.jsonl
"""
    words = "the base persona 'none', which all others are compared with, is not among the personas"
    refused("study", study, "3:11", words, study + "base: nurse\n")
