"""Patching through whole studies of a tiny taught model: planned, run, resumed, and the same by another way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from probe.capture import key_value_reads, sweep
from probe.cli import app
from probe.mechanism.patching.grid import (
    ATTN_OUT,
    DENOISING,
    HEAD_OUT,
    KEYS_VALUES,
    MLP_OUT,
    NONSENSE,
    OTHER_CASE,
    RESID,
)
from probe.mechanism.patching.groups import CASE, PERSONA, PROMPT_END
from probe.mechanism.patching.paths import DIRECT, PLAYERS, coalition_name, coalitions, players
from probe.mechanism.patching.reads import BASE_RUN, DONOR_RUN, LATENT, PATCHED, PATH
from probe.stages.interrupts import Interrupted
from probe.stages.patch import PatchTables, capture_patch, patch, patch_path, patch_tables, plan_patch
from probe.stages.patch_parts import PatchFolder
from probe.stages.patch_plan import chosen_cases, partners
from probe.stages.patch_request import PatchRequest
from probe.stages.running import load_model
from probe.stages.terminal_patch import _tell_mass, show_patch
from probe.study import Study
from probe.values import Case, ProbeError
from tests.stages.taught_model import new_model, teach
from tests.test_house import WITHOUT_TORCH
from tests.tiny_models import save_tiny_model

OPTIONS = ("home", "clinic", "hospital")
GARDENER = "You are a gardener who grows roses and tulips."
PERSONAS = {"none": None, "gardener": GARDENER, "a": "A"}
ANSWERS = {
    ("none", "0"): "The patient reports fever. Final answer: B",
    ("none", "1"): "The patient reports pain. Final answer: A",
    ("none", "2"): "Aged 54 years. Final answer: B",
    ("none", "3"): "C",
    **{("gardener", str(i)): "fever. Final answer: C" for i in range(4)},
    **{("a", str(i)): "fever. Final answer: C" for i in range(4)},
}
LABELS = [f"logp_{option}" for option in OPTIONS]


def study_of(model: Path) -> Study:
    return Study.from_mapping(
        {
            "name": "taught",
            "model": {"id": str(model)},
            "personas": [{"id": name, "text": text} for name, text in PERSONAS.items()],
            "task": {
                "id": "t",
                "instruction": "{case}\n{options}",
                "options": {"home": "stay home", "clinic": "routine care", "hospital": "chest"},
            },
            "cases": [
                {"id": str(i), "input": f"A patient aged {20 + 9 * i} reports fever.", "target": OPTIONS[i % 3]}
                | {"metadata": {"stratum": ("one", "other")[i % 2]}}
                for i in range(4)
            ],
            "capture": {"layers": [0]},
            "generation": {"max_new_tokens": 40},
        }
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    model = new_model(tmp_path_factory.mktemp("patched") / "model")
    teach(model, study_of(model), ANSWERS)
    return study_of(model)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patched_runs") / "taught"


@pytest.fixture(scope="module")
def folder(study: Study, store: Path) -> PatchFolder:
    return capture_patch(study, store=store)


@pytest.fixture(scope="module")
def reads(folder: PatchFolder) -> pd.DataFrame:
    return folder.reads(folder.read_record())


@pytest.fixture(scope="module")
def tables(folder: PatchFolder) -> PatchTables:
    return patch_tables(folder)


def read_of(reads: pd.DataFrame, **wanted: object) -> np.ndarray:
    found = reads
    for name, value in wanted.items():
        found = found[found[name] == value]
    assert len(found) == 1, wanted
    return found[LABELS].to_numpy(float)[0]


def test_everything_from_the_donor_is_the_donor_and_nothing_is_the_base(tables: PatchTables) -> None:
    check = tables.check
    assert set(check["read"]) == {"latent", "stated"}
    assert check["largest"].max() <= 1e-5
    assert check["same"].all()
    assert check.loc[check["persona"] == "gardener", "cells"].min() > 40


def test_the_base_run_has_as_many_tokens_and_where_none_has_the_persona_is_absent(
    folder: PatchFolder, tables: PatchTables
) -> None:
    told = folder.read_record()
    assert told.personas["gardener"]["neutral"] is not None
    assert told.personas["a"] == {"text": "A", "neutral": None, "nonsense": None}
    groups = tables.effects.groupby("persona")["group"].unique()
    assert {PERSONA, "all tokens"} <= set(groups["gardener"])
    assert not {PERSONA, "all tokens"} & set(groups["a"])
    absent = tables.absent[(tables.absent["persona"] == "a") & (tables.absent["group"] == PERSONA)]
    assert absent["reason"].str.contains("1 tokens in the donor's run, 0 in the other").any()
    assert "a" not in set(tables.paths["persona"])


def test_answers_without_a_text_before_their_letter_are_counted(tables: PatchTables, reads: pd.DataFrame) -> None:
    left = tables.left_out
    assert left[left["persona"] == "gardener"].to_dict("records") == [
        {"persona": "gardener", "read": "stated", "reason": "text left out: letter first", "n": 1}
    ]
    assert set(reads.loc[reads["read"] == "stated", "case"]) == {"0", "1", "2"}


def test_keys_and_values_and_paths_are_those_of_patched_caches(study: Study, store: Path, reads: pd.DataFrame) -> None:
    resolved, plan = plan_patch(study, PatchRequest(), store=store)
    backend = load_model(resolved)
    last = resolved.shape.n_layers
    for unit in (unit for part in plan.parts for unit in part.units if unit.matched and unit.case.id == "1"):
        runs = {BASE_RUN: unit.base, DONOR_RUN: unit.donor}
        groups, rows = unit.base.layout.groups, [run.row for run in runs.values()]
        names, end = players(unit.read), len(unit.base.ids) - 1
        wanted, arms = [], []
        for group in (PERSONA, CASE):
            donor = key_value_reads(backend, [unit.donor.row], [groups[group]])[0]
            for block in range(last):
                wanted.append({"kind": PATCHED, "stream": KEYS_VALUES, "layer": block, "group": group})
                arms.append((donor.patch([block]),))
        # Persona tokens stand first: from a point on, their states are the keys and values of the blocks above.
        donor = key_value_reads(backend, [unit.donor.row], [groups[PERSONA]])[0]
        for point in range(last):
            wanted.append({"kind": PATCHED, "stream": RESID, "layer": point, "group": PERSONA})
            arms.append((donor.patch(range(point, last)),))
        for chosen in coalitions(names):
            members = [PERSONA, *()] if DIRECT in chosen else []
            members += [group for role in chosen - {DIRECT} for group in PLAYERS[role]]
            tokens = sorted(token for group in members for token in groups.get(group, ()) if token < end)
            if len(chosen) in (0, len(names)) or not tokens:
                continue
            wanted.append({"kind": PATH, "group": coalition_name(chosen, names)})
            arms.append((key_value_reads(backend, [unit.donor.row], [tokens])[0].patch(seen_from=end),))
        found = [read for read in sweep(backend, rows[:1], [arms]) if read.arm is not None]
        own = reads[(reads["persona"] == unit.persona) & (reads["case"] == "1") & (reads["read"] == unit.read)]
        own = own[own["direction"].isin(["", DENOISING]) & (own["control"] == "")]
        assert len(found) == len(wanted)
        for told, read in zip(wanted, found, strict=True):
            np.testing.assert_allclose(read_of(own, **told), read.labels.logp, atol=2e-5, err_msg=str(told))


def test_controls_are_patched_where_they_correspond(tables: PatchTables) -> None:
    effects = tables.effects
    nonsense, other = (effects[effects["control"] == name] for name in (NONSENSE, OTHER_CASE))
    assert {PERSONA, CASE, PROMPT_END} <= set(nonsense["group"])
    assert PROMPT_END in set(other["group"])
    assert PERSONA not in set(other["group"])
    assert set(effects.loc[effects["control"] != "", "stream"]) == {RESID}


def test_a_second_run_finds_nothing_to_do_and_another_text_is_another_part(
    study: Study, store: Path, folder: PatchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("probe.stages.running.load_model", none)
    again = capture_patch(study, store=store)
    assert again.read_record() == folder.read_record()
    _, plan = plan_patch(study, PatchRequest(), store=store)
    moved = replace(study, personas=(*study.personas[:-1], replace(study.personas[-1], wordings=("A B",))))
    _, other = plan_patch(moved, PatchRequest(reads=(LATENT,)), store=store)
    assert not {part.key for part in other.parts} & {part.key for part in plan.parts}


def test_an_interrupted_run_keeps_its_parts_and_ends_as_an_uninterrupted_one(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = PatchRequest(reads=(LATENT,), points=(0, 2), streams=(RESID,), controls=False, paths=False)
    save, saved = PatchFolder.save, []

    def stop_at_the_second(self: PatchFolder, key: str, table: pd.DataFrame) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(key)
        save(self, key, table)

    with monkeypatch.context() as patched:
        patched.setattr(PatchFolder, "save", stop_at_the_second)
        with pytest.raises(Interrupted, match=r"1 of 2 parts are saved in .*run the same command again") as stopped:
            capture_patch(study, asked, store=tmp_path / "cut")
    assert stopped.value.exit_status == 130
    partly = patch_tables(PatchFolder(patch_path(study, tmp_path / "cut")))
    assert partly.pending == 1
    ended, whole = (patch(study, asked, store=tmp_path / name) for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(ended.effects, whole.effects, atol=1e-5)
    assert ended.pending == 0


def test_the_command_tells_the_grid_and_writes_tables_and_figures(
    study: Study, store: Path, folder: PatchFolder, tmp_path: Path
) -> None:
    ran = CliRunner().invoke(app, ["patch", str(folder.path), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    for words in ("its place is held by", "no neutral sentence of as many tokens", "check: ", "persona tokens"):
        assert words in ran.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"patch_effects.csv", "patch_grid_latent.png", "patch_paths.svg"} <= written
    wrong = CliRunner().invoke(app, ["patch", str(folder.path), "--outcome", "p_hogh_risk"])
    assert isinstance(wrong.exception, ProbeError)
    assert "p_high_risk" in str(wrong.exception)


def test_finished_parts_are_analysed_without_torch(folder: PatchFolder) -> None:
    code = (
        f"{WITHOUT_TORCH}\nfrom pathlib import Path\nimport probe.report.patching\n"
        "from probe.stages.patch import patch_tables\nfrom probe.stages.patch_parts import PatchFolder\n"
        "from probe.stages.terminal_patch import _tell_mass, show_patch\n"
        f"show_patch(patch_tables(PatchFolder(Path({str(folder.path)!r}))), 'expected_urgency')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "falcon", "gemma2", "mamba2"])
def test_other_architectures_keep_what_must_hold_and_name_the_streams_that_they_lack(
    family: str, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model", family, scale=3.0)
    study = replace(study_of(model), personas=study_of(model).personas[:2]).limited(2)
    asked = PatchRequest(reads=(LATENT,), controls=False)
    tables = patch(study, asked, store=tmp_path / "s")
    assert tables.check["same"].all()
    assert tables.check["cells"].min() > 20
    streams = set(tables.effects["stream"])
    assert set(tables.missing) == {ATTN_OUT, MLP_OUT, HEAD_OUT, KEYS_VALUES, RESID} - streams
    assert {RESID, KEYS_VALUES} <= streams
    assert (HEAD_OUT in streams) == (family != "mamba2")


def test_what_is_not_there_is_refused_by_name(study: Study, store: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"no persona 'gardner' to patch.*'gardener'"):
        plan_patch(study, PatchRequest(personas=("gardner",), reads=(LATENT,)), store=store)
    with pytest.raises(ProbeError, match="'none' is the base"):
        plan_patch(study, PatchRequest(personas=("none",), reads=(LATENT,)), store=store)
    with pytest.raises(ProbeError, match="a patched label is one of latent, stated"):
        PatchRequest(reads=("later",))
    with pytest.raises(ProbeError, match="base or own; found 'mine'"):
        PatchRequest(text="mine")
    with pytest.raises(ProbeError, match=r"holds no patching run \(no readable patch.json\)"):
        PatchFolder(tmp_path).read_record()


def test_cases_are_drawn_evenly_and_partners_are_of_another_family_and_the_same_length(study: Study) -> None:
    drawn = chosen_cases(study, 2)
    assert {case.stratum for case in drawn} == {"one", "other"}
    assert chosen_cases(study, None) == study.cases
    cases = [Case(str(i), "", "home", family=str(i // 2)) for i in range(6)]
    lengths = {"0": 5, "1": 5, "2": 5, "3": 7, "4": 9, "5": 7}
    found = partners(cases, lengths)
    assert found["0"].id == found["1"].id == "2"
    assert found["3"].id == "5"
    assert all(found[case.id].family != case.family for case in cases)
    assert partners(cases[:2], lengths) == {}


def test_the_terminal_says_what_was_not_told(tables: PatchTables, capsys: pytest.CaptureFixture[str]) -> None:
    show_patch(tables, "expected_urgency")
    told = capsys.readouterr().out
    assert "2 pairs left out (stated label): text left out: letter first" in told
    assert "persona tokens not patched in 4 pairs (latent label): 1 tokens in the donor's run, 0 in the other" in told


def test_labels_that_a_model_hardly_ever_gives_are_told_and_others_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    place = {"stratum": "all", "stream": "resid", "read": "latent"}
    rows = [{"persona": persona, "mass": mass, **place} for persona, mass in (("nurse", 0.01), ("ghost", 0.9))] * 3
    _tell_mass(pd.DataFrame(rows))
    told = capsys.readouterr().out
    assert "nurse: where the latent label is read the labels have .010" in told and "ghost" not in told
    _tell_mass(pd.DataFrame(rows[1::2]))
    assert capsys.readouterr().out == ""
