from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from probe.study import (
    CONFIRMABLE,
    USUAL_ANALYSES,
    CaptureSpec,
    ConditionSpec,
    GenerationSpec,
    ModelSpec,
    Study,
)
from probe.values import Persona, StudyError

HEAD = """\
name: small
model: {id: organism}
personas: personas.yaml
task: {id: t, instruction: "{case} {options}", options: {wait: wait, refer: refer}}
cases: cases.jsonl
"""


@pytest.mark.parametrize(
    ("broken", "place", "words", "mended"),
    [
        ("captur: {}", "6:1", "unknown key 'captur'. The nearest known key is 'capture'", "capture: {}"),
        ("zzz: 1", "6:1", "unknown key 'zzz'. Known keys: 'name', 'model'", ""),
        ("capture: {layer: all}", "6:11", "The nearest known key is 'layers'", "capture: {layers: all}"),
        ("capture:\n  layers: some", "7:11", "`layers` must be all or a list of whole", "capture:\n  layers: all"),
        ("capture: {layers: [0, -1]}", "6:19", "found the number -1", "capture: {layers: [0, 1]}"),
        ("capture: {layers: [1, 1]}", "6:19", "names 1 twice", "capture: {layers: [1, 2]}"),
        ("capture: {layers: []}", "6:19", "must name at least one", "capture: {layers: [3]}"),
        ("capture: {layers: [true]}", "6:19", "found the truth value true", "capture: {layers: [1]}"),
        (
            "capture: {positions: [anser]}",
            "6:23",
            "nearest known position is 'answer'",
            "capture: {positions: [answer]}",
        ),
        ("capture: {positions: answer}", "6:22", "must be a list, found the text", "capture: {positions: [answer]}"),
        (
            "capture: {streams: [resid, attn]}",
            "6:28",
            "holds the text 'attn', which is no stream",
            "capture: {streams: [resid, attn_out]}",
        ),
        ("capture: {streams: [attn_out]}", "6:20", "must name resid", "capture: {streams: [attn_out, resid]}"),
        ("capture: {dtype: float16}", "6:18", "'auto', 'float32' or 'bfloat16'", "capture: {dtype: float32}"),
        ("capture: {batch_size: 0}", "6:23", "must be auto or a whole number from 1", "capture: {batch_size: 1}"),
        (
            "capture: {keep_text: yes}",
            "6:22",
            "must be true or false, found the text 'yes'",
            "capture: {keep_text: true}",
        ),
        ("capture: 3", "6:10", "`capture` must be a mapping, found the number 3", "capture: {}"),
        ("generation: {max_new_tokens: 1e2}", "6:30", "must be a whole number", "generation: {max_new_tokens: 100}"),
        ("generation: {max_new_tokens: '9'}", "6:30", "found the text '9'", "generation: {max_new_tokens: 9}"),
        ("generation: {max_new_tokens: 0}", "6:30", "must be at least 1, found the number 0", ""),
        ("conditions: {wordings: some}", "6:24", "must be first, all or a whole", "conditions: {wordings: all}"),
        ("conditions: {wordings: {nurs: all}}", "6:25", "nearest known persona is 'nurse'", ""),
        ("conditions: {wordings: {nurse: 2}}", "6:32", "2 wordings of 'nurse', which has 1", ""),
        ("conditions: {instructions: [1]}", "6:29", "has 1 instruction wordings", "conditions: {instructions: [0]}"),
        ("conditions: {rotations: [2]}", "6:26", "has 2 options. Count from 0 to 1", "conditions: {rotations: [1]}"),
        ("conditions: {rotations: 3}", "6:25", "must be none, all or a list", "conditions: {rotations: none}"),
        ("conditions: {placement: top}", "6:25", "'auto', 'system' or 'user'", "conditions: {placement: user}"),
        ("analyses: [metric]", "6:12", "The nearest known analysis is 'metrics'", "analyses: [metrics]"),
        ("analyses: [report, report]", "6:11", "names 'report' twice", "analyses: [report]"),
        ("base: nurs", "6:7", "The nearest known persona is 'nurse'", "base: nurse"),
        ("base: true", "6:7", "must be text, found the truth value true. Put it in quotes", "base: 'none'"),
        ("generation: {temperature: -1}", "6:27", "must be 0 (greedy) or above", "generation: {temperature: 1}"),
        ("generation: {temperature: 1e-40}", "6:27", "or at least 1e-06", "generation: {temperature: 1e-6}"),
        ("generation: {temperature: .nan}", "6:27", "must be a number", "generation: {temperature: .5}"),
        ("generation: {temperature: warm}", "6:27", "must be a number, found the text 'warm'", ""),
        ("generation: {temperature: 1, top_p: 0}", "6:37", "above 0 and at most 1", "generation: {top_p: 1}"),
        ("generation: {temperature: 1, top_p: 1.5}", "6:37", "above 0 and at most 1", ""),
        ("generation: {temperature: 1, top_k: 0}", "6:37", "must be at least 1", "generation: {top_k: null}"),
        ("generation: {seeds: 3}", "6:21", "`seeds` is 3, but at temperature 0", "generation: {seeds: 1}"),
        ("generation: {top_p: 0.9}", "6:21", "`top_p` is 0.9, but at temperature 0", ""),
        ("generation: {top_k: 5}", "6:21", "`top_k` is 5, but at temperature 0", ""),
        ("generation: {seed: 3}", "6:14", "The nearest known key is 'seeds'", "generation: {temperature: 1, seeds: 3}"),
        ("confirm: [x]", "6:11", "`confirm` must be a mapping, found the text 'x'", "confirm: []"),
        ("confirm: [{persona: nurse}]", "6:11", "the key 'metric' is missing", ""),
        ("confirm: [{persona: nurs, metric: brier}]", "6:21", "The nearest known persona is 'nurse'", ""),
        ("confirm: [{persona: nurse, metric: acuracy}]", "6:36", "The nearest known metric is 'accuracy'", ""),
        ("confirm: [{persona: nurse, metric: ece}]", "6:36", "no metric with a test. Known metrics: 'accuracy'", ""),
        ("confirm: [{persona: nurse, metric: brier, base: non}]", "6:49", "The nearest known persona is 'none'", ""),
        ("confirm: [{persona: none, metric: brier}]", "6:21", "compares 'none' with itself", ""),
        ("confirm: [{persona: nurse, metric: brier, stratum: acut}]", "6:52", "nearest known stratum is 'acute'", ""),
        ("confirm: [{persona: nurse, metric: brier, direction: up}]", "6:54", "'either', 'greater' or 'less'", ""),
        (
            "confirm: [{persona: nurse, metric: brier}, {persona: nurse, metric: brier}]",
            "6:10",
            "twice. Remove one",
            "confirm: [{persona: nurse, metric: brier}, {persona: nurse, metric: brier, stratum: acute}]",
        ),
        ("split_seed: -1", "6:13", "must be at least 0", "split_seed: 7"),
        ("limit: 0", "6:8", "must be at least 1", "limit: 1"),
        ("limit: many", "6:8", "must be a whole number, found the text 'many'", "limit: null"),
        ("personas: personas.yaml", "6:1", "the key 'personas' stands twice (first on line 3)", ""),
    ],
)
def test_a_wrong_setting_is_refused_at_its_place_and_the_mended_study_loads(
    refused: Callable[..., None], broken: str, place: str, words: str, mended: str
) -> None:
    refused("study", HEAD + broken + "\n", place, words, HEAD + mended + "\n")


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("name: small", "name: a/b", "1:7", "names a folder"),
        ("name: small", "name: ..", "1:7", "names a folder"),
        ("name: small", "name: 7", "1:7", "must be text, found the number 7. Put it in quotes"),
        ("name: small\n", "", "1:1", "the key 'name' is missing"),
        ("name: small", "nam: small", "1:1", "unknown key 'nam'. The nearest known key is 'name'"),
        ("{id: organism}", "organism", "2:8", "`model` must be a mapping, found the text 'organism'"),
        ("{id: organism}", "{}", "2:8", "the key 'id' is missing"),
        ("{id: organism}", "{id: ''}", "2:13", "`id` must not be empty"),
        ("{id: organism}", "{id: 1, backend: hf}", "2:13", "must be text, found the number 1"),
        ("{id: organism}", "{id: o, backend: jax}", "2:25", "is the text 'jax', which is no backend"),
        ("{id: organism}", "{id: o, backend: nnsigt}", "2:25", "The nearest known backend is 'nnsight'"),
        ("{id: organism}", "{id: o, backend: nnsight, remote: ndif}", "2:42", "must be false, local or true"),
        ("{id: organism}", "{id: o, remote: local}", "2:24", "runs a model elsewhere, and the backend is 'hf'"),
        ("{id: organism}", "{id: organism, backend: nnsight, remote: true}", "2:49", "'organism' is here only"),
        ("{id: organism}", "{id: o, device_map: cuda}", "2:28", "must be 'auto', 'balanced', 'balanced_low_0' or 'seq"),
        ("{id: organism}", "{id: o, device_map: auto, device: cpu}", "2:42", "chooses the devices itself, and "),
        ("{id: organism}", "{id: o, device_map: auto, backend: nnsight}", "2:28", "only the backend hf reads a mod"),
        ("{id: organism}", "{id: o, device_map: auto, tensor_parallel: 2}", "2:51", "`tensor_parallel` cuts eve"),
        ("{id: organism}", "{id: o, tensor_parallel: 0}", "2:33", "must be at least 1"),
        ("{id: organism}", "{id: o, revision: 1e10}", "2:26", "`revision` must be text, found the number"),
        ("{id: organism}", "{id: a/b@x, revision: y}", "2:13", "the revision stands twice"),
        ("{id: organism}", "{id: a/b@}", "2:13", "a hub id is NAME@REVISION"),
        ("personas.yaml", "person.yaml", "3:11", "there is no file"),
        ("personas.yaml", f"{'x' * 5000}.yaml", "3:11", "there is no file"),
        ("{id: organism}", '{id: "a\\tb"}', "2:13", "the control character U+0009"),
        ("personas.yaml", "personas.csv", "3:11", "Personas are read from .yaml or .yml files"),
        ("personas.yaml", "builtin:persona-paradoks", "3:11", "The nearest known name is 'persona-paradox'"),
        ("personas.yaml", "3", "3:11", "found the number 3"),
        ("personas.yaml", "{path: p.yaml}", "3:18", "there is no file"),
        ("personas.yaml", "{path: p.yaml, sha: 1}", "3:26", "unknown key 'sha'"),
        ("personas.yaml", "[]", "3:11", "at least one persona"),
        ("cases.jsonl", "cases.tsv", "5:8", "Cases are read from .jsonl or .csv or .parquet files, found 'cases.tsv'"),
        ("cases.jsonl", "{path: c.csv}", "5:15", "there is no file"),
        ("cases.jsonl", "{path: cases.jsonl, fields: {inptu: x}}", "5:37", "The nearest known key is 'input'"),
        ("cases.jsonl", "{path: cases.jsonl, feilds: {}}", "5:28", "The nearest known key is 'fields'"),
        ("cases.jsonl", "{hub: org/name}", "5:8", "the key 'split' is missing"),
        ("cases.jsonl", "{hub: org/name, spilt: test}", "5:24", "The nearest known key is 'split'"),
        ("cases.jsonl", "builtin:triag", "5:8", "The nearest known name is 'triage'"),
        ("cases.jsonl", "builtin:triage", "5:8", "is no option of the task 't'"),
        ("cases.jsonl", "[]", "5:8", "at least one case"),
        ("cases.jsonl", "null", "5:8", "found nothing (null)"),
    ],
)
def test_a_wrong_required_key_is_refused_at_its_place_and_the_mended_study_loads(
    refused: Callable[..., None], old: str, new: str, place: str, words: str
) -> None:
    assert old in HEAD
    refused("study", HEAD.replace(old, new), place, words, HEAD)


@pytest.mark.parametrize(
    ("text", "words"), [("- a\n", "this must be a mapping with keys `name`"), ("just text\n", "found the text")]
)
def test_a_study_that_is_no_mapping_is_refused(refused: Callable[..., None], text: str, words: str) -> None:
    refused("study", text, "1:1", words, HEAD)


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no such file"):
        Study.load(tmp_path / "study.yaml")
    with pytest.raises(StudyError, match="cannot be read"):
        Study.load(tmp_path)


def test_defaults_are_those_of_the_design(write: Callable[..., Path]) -> None:
    study = Study.load(write())
    assert study.model == ModelSpec("organism", None, "auto", "auto", "hf", False, None, False)
    assert study.conditions == ConditionSpec("first", (0,), "none", "auto")
    assert study.capture == CaptureSpec("all", ("prompt_end", "answer"), "auto", "auto", True)
    assert study.generation == GenerationSpec(1024, 0.0, 1.0, None, 1)
    assert study.generation.greedy
    assert study.analyses == USUAL_ANALYSES == ("metrics", "relate", "report")
    assert (study.base, study.confirm, study.split_seed, study.limit) == ("none", (), 0, None)


def test_a_hub_id_is_split_from_its_revision_and_a_folder_is_found_beside_the_study(write: Callable[..., Path]) -> None:
    path = write()
    assert Study.load(path, overrides=["model.id=org/name@v1"]).model == ModelSpec("org/name", "v1")
    assert Study.load(path, overrides=["model.id=org/name"]).model == ModelSpec("org/name")
    for name in ("tiny", "tiny@2", "organism"):
        (path.parent / name).mkdir()
    assert Study.load(path, overrides=["model.id=tiny"]).model.id == str((path.parent / "tiny").resolve())
    assert Study.load(path, overrides=["model.id=./tiny@2"]).model.id == str((path.parent / "tiny@2").resolve())
    assert Study.load(path).model.id == "organism"  # the embedded model, not the folder of that name


def test_a_chat_template_is_plain_a_file_or_jinja_text(write: Callable[..., Path]) -> None:
    path = write()
    jinja = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    (path.parent / "chat.jinja").write_text(jinja)
    assert Study.load(path).model.chat_template is None
    assert Study.load(path, overrides=["model.chat_template=plain"]).model.chat_template == "plain"
    study = Study.load(path, overrides=["model.chat_template=chat.jinja"])
    assert study.model.chat_template == jinja
    assert Study.from_mapping(study.to_mapping()).model.chat_template == jinja
    for wrong in ("chatml", "none.jinja", "study.yaml"):
        with pytest.raises(StudyError, match=r"must be plain, the path of a \.jinja file, or Jinja text"):
            Study.load(path, overrides=[f"model.chat_template={wrong}"])


def test_a_study_built_in_python_is_checked_as_well(write: Callable[..., Path]) -> None:
    study = Study.load(write())
    assert dataclasses.replace(study, base="nurse").base == "nurse"
    for changes, words in (
        ({"base": "nobody"}, "study at base: the base persona 'nobody'"),
        ({"capture": CaptureSpec(layers=(0, 0))}, "study at capture.layers: `layers` names 0 twice"),
        ({"generation": GenerationSpec(0)}, "study at generation.max_new_tokens: "),
        ({"personas": ()}, "at least one persona"),
        ({"cases": ()}, "at least one case"),
        ({"cases": study.cases * 2}, "two cases have the id 'c1'"),
        ({"cases": (dataclasses.replace(study.cases[0], target="C"),)}, "The options are wait, refer"),
        ({"limit": 1}, "Use study.limited"),
        ({"personas": (*study.personas, Persona("a\tb", ("x",)))}, "study at personas[2].id: `id` holds the control"),
        ({"personas": study.personas * 2}, "two personas have the id 'none'"),
        ({"task": dataclasses.replace(study.task, letters=("A",))}, "study at task.letters: there must be one letter"),
        ({"task": dataclasses.replace(study.task, instructions=("x",))}, "study at task.instructions[0]: an instr"),
        ({"analyses": ("metrics", "patchh")}, "The nearest known analysis is 'patch'"),
    ):
        with pytest.raises(StudyError) as caught:
            dataclasses.replace(study, **changes)
        assert words in str(caught.value)


def test_the_metrics_that_may_be_planned_are_those_that_can_be_tested() -> None:
    from probe.behaviour import FAMILY
    from probe.behaviour.contrasts import CONTRASTS

    told = {contrast.name: contrast.note for contrast in CONTRASTS}
    assert set(FAMILY) <= set(CONFIRMABLE) <= set(told)
    assert not any("descriptive" in told[name] for name in CONFIRMABLE)
    assert all("descriptive" in told[name] or name == "label_mass" for name in set(told) - set(CONFIRMABLE))


def test_a_limit_may_leave_a_planned_stratum_without_cases_but_an_unknown_one_is_refused(
    write: Callable[..., Path],
) -> None:
    planned = "confirm=[{persona: nurse, metric: accuracy, stratum: %s}]"
    study = Study.load(write(), overrides=[planned % "acute"], limit=1)
    assert study.strata == ("calm",)
    assert Study.from_mapping(study.to_mapping()).confirm == study.confirm
    with pytest.raises(StudyError, match="The nearest known stratum is 'acute'"):
        Study.load(write(), overrides=[planned % "acut"], limit=1)
