from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.study import ConditionSpec, ModelSpec, Study
from probe.study.fits import evenly
from probe.values import Case, Cell, Condition, Option, Persona, StudyError, Task, canonical_json, sha256_of

TASK = Task(
    "t",
    ("{case} {options}", "{options} {case}", "{case}\n{options}"),
    (Option("wait", "w"), Option("see", "s"), Option("refer", "r")),
    ("A", "B", "C"),
    "refer",
)
CASES = tuple(Case(f"c{i}", "x", "wait", stratum="calm" if i % 4 else "acute", family=f"c{i}") for i in range(12))
PERSONAS = (Persona("none", (None,)), Persona("nurse", ("One.", "Two."), role="nurse"))
STUDY = Study("small", ModelSpec("organism"), PERSONAS, TASK, CASES)


def test_cells_are_persona_major_then_by_case_then_by_condition() -> None:
    study = dataclasses.replace(STUDY, conditions=ConditionSpec("all", (0, 2), "all"))
    cells = study.cells("user")
    assert len(cells) == len(set(cells)) == len({cell.row_id for cell in cells}) == (1 + 2) * 12 * 2 * 3
    assert [cell.persona for cell in cells] == ["none"] * 12 * 6 + ["nurse"] * 12 * 12
    nurse = cells[12 * 6 :]
    assert [cell.case for cell in nurse] == [case.id for case in CASES for _ in range(12)]
    conditions = [cell.condition for cell in nurse[:12]]
    assert [(c.wording, c.instruction, c.rotation) for c in conditions] == [
        (wording, instruction, rotation) for wording in (0, 1) for instruction in (0, 2) for rotation in (0, 1, 2)
    ]
    assert {c.placement for c in conditions} == {"user"}


def test_the_default_is_one_condition_and_chosen_rotations_keep_their_order() -> None:
    assert STUDY.cells()[:2] == (Cell("none", "c0", Condition()), Cell("none", "c1", Condition()))
    assert len(STUDY.cells()) == 24
    study = dataclasses.replace(STUDY, conditions=ConditionSpec(rotations=(2, 0)))
    assert [cell.condition.rotation for cell in study.cells()[:3]] == [2, 0, 2]


def test_the_placement_of_cells_is_the_studys_own_unless_it_is_given() -> None:
    study = dataclasses.replace(STUDY, conditions=ConditionSpec(placement="user"))
    assert {cell.condition.placement for cell in study.cells()} == {"user"}
    assert {cell.condition.placement for cell in study.cells("system")} == {"system"}
    assert {cell.condition.placement for cell in STUDY.cells()} == {"system"}
    with pytest.raises(StudyError, match="Resolve 'auto' first"):
        STUDY.cells("auto")


def test_a_limit_is_in_all_and_even_over_strata_in_file_order() -> None:
    limited = STUDY.limited(5)
    assert [case.id for case in limited.cases] == ["c0", "c1", "c2", "c4", "c8"]
    assert limited.limit == 5
    assert limited.strata == ("acute", "calm")
    assert STUDY.limited(100).cases == CASES


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 35))
def test_a_limit_keeps_the_first_of_every_stratum_and_shares_evenly(strata: list[str], limit: int) -> None:
    cases = tuple(Case(str(i), "x", "wait", stratum=stratum) for i, stratum in enumerate(strata))
    kept = evenly(cases, limit)
    assert len(kept) == min(limit, len(cases))
    assert [int(case.id) for case in kept] == sorted(int(case.id) for case in kept)
    counts = Counter(case.stratum for case in kept)
    for stratum, available in Counter(strata).items():
        of_stratum = [case for case in cases if case.stratum == stratum]
        assert [case for case in kept if case.stratum == stratum] == of_stratum[: counts[stratum]]
        if counts[stratum] < available:  # nobody gets more than one above a stratum that still has cases
            assert max(counts.values()) <= counts[stratum] + 1


def test_the_command_lines_limit_goes_before_the_files(write: Callable[..., Path]) -> None:
    path = write()
    assert len(Study.load(path).cases) == 2
    write(study=path.read_text() + "limit: 2\n")
    assert len(Study.load(path).cases) == 2
    assert Study.load(path, limit=1).limit == 1
    assert [case.id for case in Study.load(path, limit=1).cases] == ["c1"]
    assert len(Study.load(path, overrides=["limit=1"]).cases) == 1
    with pytest.raises(StudyError, match="`limit` must be at least 1"):
        Study.load(path, limit=0)


def test_a_study_goes_through_json_and_back_unchanged() -> None:
    spec = ConditionSpec("all", (0, 1), (1, 2), "user")
    study = dataclasses.replace(STUDY, conditions=spec, base="nurse", analyses=("metrics",), split_seed=3).limited(7)
    text = canonical_json(study.to_mapping())
    assert Study.from_mapping(json.loads(text)) == study
    assert Study.from_mapping(study.to_mapping()) == study
    assert Study.from_mapping(STUDY.to_mapping()) != study


def test_the_order_of_options_is_part_of_a_studys_hash() -> None:
    turned = dataclasses.replace(STUDY, task=dataclasses.replace(TASK, options=TASK.options[::-1]))
    assert sha256_of(turned.to_mapping()) != sha256_of(STUDY.to_mapping())
    assert Study.from_mapping(json.loads(canonical_json(turned.to_mapping()))) == turned


def test_a_short_record_tells_cases_apart_by_their_hash() -> None:
    record = STUDY.to_mapping(cases=False)
    assert record["cases"]["n"] == 12
    other = dataclasses.replace(STUDY, cases=(dataclasses.replace(CASES[0], input="y"), *CASES[1:]))
    assert other.to_mapping(cases=False)["cases"]["n"] == 12
    assert other.to_mapping(cases=False)["cases"]["sha256"] != record["cases"]["sha256"]


def test_a_mapping_finds_its_files_in_the_given_directory_and_names_keys_in_errors(write: Callable[..., Path]) -> None:
    path = write()
    mapping = {
        "name": "small",
        "model": {"id": "organism"},
        "personas": "personas.yaml",
        "task": {"id": "referral", "instruction": "{case} {options}", "options": {"wait": "w", "refer": "r"}},
        "cases": "cases.jsonl",
    }
    study = Study.from_mapping(mapping, directory=path.parent)
    assert (study.source, len(study.cases)) == (None, 2)
    assert Study.load(path).source == path
    with pytest.raises(StudyError, match=r"^study at capture\.layer: unknown key 'layer'"):
        Study.from_mapping(mapping | {"capture": {"layer": 1}}, directory=path.parent)
    with pytest.raises(StudyError, match=r"^study at cases\[0\]\.target: the target 'C' is no option"):
        Study.from_mapping(
            mapping | {"cases": [{"id": 1, "input": "x", "target": "C"}]},
            directory=path.parent,
        )
    with pytest.raises(StudyError, match=r"^study: this must be a mapping"):
        Study.from_mapping(["name"])  # type: ignore[arg-type]  # wrong on purpose


def test_personas_and_cases_are_found_by_id_and_an_unknown_one_is_refused() -> None:
    assert STUDY.persona("nurse") is PERSONAS[1]
    assert STUDY.case("c3") is CASES[3]
    with pytest.raises(StudyError, match=r"no persona 'nurs'. The nearest known persona is 'nurse'"):
        STUDY.persona("nurs")
    with pytest.raises(StudyError, match=r"no case 'd3'. Known cases: 'c0', 'c1'"):
        STUDY.case("d3")
