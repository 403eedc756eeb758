"""Stored answers are read anew without a model; what was measured where the label stood stays there, or is absent."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.prompts import parse_answer, parser_name
from probe.stages.answers import show_answers, show_text
from probe.stages.parsing import mixed_parsers, parser_of, reparse, reread
from probe.store import Store, StoreLock, open_store, open_writer
from probe.values import DEFAULT_PARSER, CellRecord, Condition, ParserSettings, ProbeError
from tests.store import store_samples as samples

SAYS = (
    "Final answer: A",
    "Verdict B. The rest can wait.",
    "I'm sorry, I can't say.",
    "Final answer: urgent",
    "The answer is B. Code: C",
    "Final answer: C",
)
TEXTS = ["self-care", "primary care", "urgent"]


def planned(rotation: int = 0, choices: Sequence[str] | None = None) -> Any:
    plan = samples.plan(("nurse",), len(SAYS))
    rows = [replace(row, cell=replace(row.cell, condition=Condition(rotation=rotation))) for row in plan.rows]
    cases = tuple({**case, **({"choices": list(choices)} if choices else {})} for case in plan.cases)
    return replace(plan, rows=tuple(rows), cases=cases)


def captured(row: Any, says: str, rotation: int, parser: str | None) -> CellRecord:
    """The record that a capture would have made of this answer; the last one met the cap."""
    letters = tuple("ABC"[(i + rotation) % 3] for i in range(3))
    cut = says == SAYS[-1]
    parsed = parse_answer(says, letters, truncated=cut)
    label = None if parsed.letter is None else samples.OPTIONS[letters.index(parsed.letter)]
    record = samples.record(row, answer=label is not None)
    known = {} if parser is None else {"parser": parser}
    return replace(
        record,
        gen_text=says,
        status=parsed.status,
        label=label,
        letter=parsed.letter,
        span=parsed.span,
        letter_first=False,
        extra={"stop": "length" if cut else "end", **known},
    )


def store_of(
    path: Path,
    says: Sequence[str] = SAYS,
    *,
    rotation: int = 0,
    choices: Sequence[str] | None = None,
    parsers: Sequence[str | None] = ("2",),
    own: Mapping[str, Any] | None = None,
) -> Store:
    plan = planned(rotation, choices)
    manifest = samples.manifest()
    manifest["labels"]["texts"] = TEXTS
    manifest["study"] = {"name": "small", **({"task": {"parser": own}} if own else {})}
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest, lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            rows = [(i, row) for i, row in enumerate(plan.rows) if row.shard == shard]
            writer.commit([captured(row, says[i], rotation, parsers[i % len(parsers)]) for i, row in rows])
    return open_store(path)


def stated(table: Any) -> list[str]:
    return [label or status for label, status in zip(table["y_gen"], table["status"], strict=True)]


def test_the_same_settings_change_nothing_but_what_the_capture_could_not_know(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", SAYS[:3] * 2)
    found = reparse(store, DEFAULT_PARSER)
    before = store.table()
    assert not found.changes
    assert "0 of 6 answers are read differently" in str(found)
    for name in before.columns.drop("parser"):
        np.testing.assert_array_equal(before[name].to_numpy(), found.table[name].to_numpy(), err_msg=name)
    assert set(found.table["parser"]) == {parser_name(DEFAULT_PARSER)}
    assert found.table.attrs["options"] == list(samples.OPTIONS)


def test_other_settings_move_labels_and_leave_reads_only_where_the_letter_still_stands(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    assert stated(store.table()) == ["home", "unparsable", "refused", "unparsable", "clinic", "truncated"]
    settings = ParserSettings(statements=(r"verdict {letter}", r"code: {letter}"))
    found = reparse(store, settings)
    assert stated(found.table) == ["home", "clinic", "refused", "emergency", "emergency", "truncated"]
    assert found.changes == {("unparsable", "clinic"): 1, ("unparsable", "emergency"): 1, ("clinic", "emergency"): 1}
    assert list(found.table["letter"]) == ["A", "B", None, None, "C", None]  # "urgent" is the option's word, no letter
    before, after = store.table(), found.table
    reads = [name for name in before.columns if name.startswith("stated_")]
    assert len(reads) == 4
    np.testing.assert_array_equal(before[reads].iloc[0], after[reads].iloc[0])
    assert before[reads].iloc[[0, 4]].notna().all(axis=None)  # the control: there was something to keep, and to drop
    assert after[reads].iloc[1:].isna().all(axis=None)
    unread = [name for name in before.columns if name.startswith(("logp_", "label_mass", "margin", "y_latent"))]
    np.testing.assert_array_equal(before[unread].to_numpy(), after[unread].to_numpy())


def test_letters_are_those_of_the_rotation_and_words_those_that_the_case_was_shown(tmp_path: Path) -> None:
    table = reparse(store_of(tmp_path / "turned", rotation=1), DEFAULT_PARSER).table
    assert stated(table)[0] == "emergency"  # A stands for the third option
    assert stated(table)[3] == "emergency"  # and the words stand for themselves
    shown = reparse(store_of(tmp_path / "shown", choices=["urgent", "soon", "later"]), DEFAULT_PARSER).table
    assert stated(shown)[3] == "home"


def test_a_store_read_anew_is_a_store_to_every_analysis(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    file = tmp_path / "parser.yaml"
    file.write_text("statements: ['verdict {letter}']\n")
    again = reread(store, file)
    assert isinstance(again, Store)
    assert stated(again.table())[1] == "clinic"
    assert stated(store.table())[1] == "unparsable"
    assert again.plan is store.plan or again.plan.hash == store.plan.hash
    with pytest.raises(ProbeError, match="a table of predictions holds no answers"):
        reread(store.table(), file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("statments: []\n", r"parser\.yaml:1:1: unknown key 'statments'\. The nearest known key is 'statements'"),
        (
            "statements:\n  - 'fine {letter}'\n  - 'broken ({letter}'\n",
            r"parser\.yaml:3:5: `statements` must be a regular",
        ),
        ("statements: ['no place']\n", r"parser\.yaml:1:14: `statements` must hold \{letter\} once"),
        ("reasoning: [{open: '<a>'}]\n", r"parser\.yaml:1:13: the key 'close' is missing"),
        ("option_texts: sometimes\n", r"parser\.yaml:1:15: `option_texts` must be true or false"),
        ("languages: [en, xx]\n", r"parser\.yaml:1:17: `languages` must be one of en"),
    ],
)
def test_a_file_of_settings_is_refused_at_the_place_of_its_mistake(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "parser.yaml"
    file.write_text(content)
    with pytest.raises(ProbeError, match=said):
        parser_of(file)
    assert parser_of("builtin") == DEFAULT_PARSER


def test_a_store_read_by_two_parsers_says_so_and_one_reading_does_not(tmp_path: Path) -> None:
    mixed = store_of(tmp_path / "mixed", parsers=(None, "2"))
    note = mixed_parsers(mixed.table())
    assert "3 by an earlier one" in note
    assert "3 by parser 2" in note
    assert "--parser builtin" in note
    assert not mixed_parsers(reparse(mixed, DEFAULT_PARSER).table)
    assert not mixed_parsers(store_of(tmp_path / "one").table())
    assert not mixed_parsers(mixed.table().drop(columns="parser"))


def test_answers_are_shown_with_what_was_read_and_nothing_in_them_is_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    says = ["[bold]<think>x</think> \x1b[2J Final answer: B", *SAYS[1:]]
    store_of(tmp_path / "store", says)
    show_answers(tmp_path / "store", limit=1)
    shown = capsys.readouterr().out
    assert "[bold]<think>x</think> ⟨U+001B⟩[2J Final answer: »B«" in shown
    assert "nurse / case-0000" in shown
    assert "parsed: clinic, letter B (rule: final answer)" in shown
    assert "1 of 6 answers shown; --limit N for more" in shown
    file = tmp_path / "parser.yaml"
    file.write_text("statements: ['verdict {letter}']\n")
    show_answers(tmp_path / "store", status="parsed", case="case-0001", parser=str(file))
    shown = capsys.readouterr().out
    assert "(rule: your statement); the capture read unparsable" in shown
    assert "1 of 1 answers with status parsed shown" in shown
    store_of(tmp_path / "own", says, own={"statements": ["verdict {letter}"]})
    show_answers(tmp_path / "own", case="case-0001")  # a study's own settings need not be named again
    assert "(rule: your statement)" in capsys.readouterr().out
    with pytest.raises(ProbeError, match="status 'parsd' is not known"):
        show_answers(tmp_path / "store", status="parsd")
    with pytest.raises(ProbeError, match="nurse"):
        show_answers(tmp_path / "store", persona="nurze")
    monkeypatch.setattr("sys.stdin", io.StringIO("The answer is (D)."))
    show_text(None, letters=["A", "B", "C", "D"])
    assert "parsed: D, letter D" in capsys.readouterr().out
    with pytest.raises(ProbeError, match="there is no file or store"):
        show_text(tmp_path / "nowhere.txt", letters=["A", "B"])


def test_an_answer_without_a_label_shows_no_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.txt"
    file.write_text("Vitamin C is fine.", encoding="utf-8")
    show_text(file, letters=["A", "B", "C"])
    shown = capsys.readouterr().out
    assert "Vitamin C is fine." in shown
    assert "unparsable" in shown
    assert not re.search("[»«]", shown)


def test_the_settings_shown_in_the_documentation_do_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "parsing.md").read_text(encoding="utf-8")
    written = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert written is not None
    file = tmp_path / "parser.yaml"
    file.write_text(written[1], encoding="utf-8")
    own = parser_of(file)
    text = "BEGIN\nFinal answer: A\nEND\nSeverity code [B]. The answer is C."
    assert parse_answer(text, ("A", "B", "C"), settings=own).letter == "B"
    assert parse_answer(text, ("A", "B", "C")).letter == "A"
    assert parse_answer("This is beyond my remit.", ("A", "B", "C"), settings=own).status == "refused"


@pytest.mark.slow
def test_a_hundred_thousand_answers_are_read_in_well_under_a_minute() -> None:
    reasons = (
        "Severe vomiting of blood for ten minutes, low pressure, a history of migraine. I look for threats to life. "
    )
    texts = [reasons * 3 + f"Final answer: {'ABC'[i % 3]}" for i in range(5000)]
    parse_answer(texts[0], ("A", "B", "C"), texts=TEXTS)
    started = time.perf_counter()
    for text in texts:
        parse_answer(text, ("A", "B", "C"), texts=TEXTS)
    assert (time.perf_counter() - started) / len(texts) * 100_000 < 60
