"""The documentation names every command and every option that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from probe.cli import app
from probe.cli_options import MetricsOptions, StudyOptions, column_names, expanded
from probe.values import ProbeError

DOCS = Path(__file__).parents[1] / "docs"
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {name: command for name, command in group.commands.items() if not hasattr(command, "commands")}


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_pages_name_every_command_and_every_option_of_it(name: str) -> None:
    assert f"`probe {name}" in (DOCS / "cli.md").read_text(encoding="utf-8")
    options = [option for parameter in commands()[name].params for option in parameter.opts if option.startswith("--")]
    for option in options:
        if option != "--help":
            assert re.search(rf"{option}\b", PAGES), f"probe {name} {option}"


def test_run_and_capture_have_the_same_options_but_for_those_of_the_analyses() -> None:
    def options(name: str) -> set[str]:
        return {parameter.name for parameter in commands()[name].params}

    assert options("run") - options("capture") == {"out", "dry_run", "hardware"}
    assert not options("capture") - options("run")
    assert {"limit", "set_", "store", "fresh"} <= options("capture")


def test_an_options_class_gives_its_fields_to_a_command_and_is_given_to_it_whole() -> None:
    seen: list[tuple[StudyOptions, int]] = []

    @expanded
    def command(options: StudyOptions, more: Annotated[int, typer.Option()] = 3) -> None:
        seen.append((options, more))

    small = typer.Typer()
    small.command()(command)
    typer.main.get_command(small).main(
        ["s.yaml", "--limit", "4", "--set", "a=1", "--set", "b=2"], standalone_mode=False
    )
    assert seen == [(StudyOptions(Path("s.yaml"), limit=4, set_=["a=1", "b=2"]), 3)]


def test_columns_are_named_ours_first() -> None:
    assert column_names(["case=question id", "y_gen=a=b"]) == {"case": "question id", "y_gen": "a=b"}
    assert column_names(None) == {}
    for wrong in (["case"], ["=x"], ["case="], ["case=a", "case=b"]):
        with pytest.raises(ProbeError, match="--columns"):
            column_names(wrong)


def test_what_is_asked_of_a_table_reaches_the_analysis_and_a_wrong_word_is_refused() -> None:
    given = MetricsOptions(Path("t.csv"), base="x", control=["a", "b"], options="lo, hi", bins=5, ece="equal-mass")
    asked = given.question
    assert (asked.base, asked.controls, asked.options) == ("x", ("a", "b"), ("lo", "hi"))
    assert (asked.settings.n_bins, asked.equal_mass, asked.high_risk) == (5, True, None)
    plain = MetricsOptions(Path("t.csv")).question
    assert (plain.controls, plain.options, plain.equal_mass) == (None, None, False)
    for wrong in ({"cut": "sharp"}, {"ece": "even"}):
        with pytest.raises(ProbeError, match=f"--{next(iter(wrong))} must be one of"):
            _ = MetricsOptions(Path("t.csv"), **wrong).question
