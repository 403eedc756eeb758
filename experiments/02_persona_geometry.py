"""Is a persona a direction of its own, and is a style the same direction on every role?

Reads prompts alone: paired shifts of the residual stream, by layer, against no persona and against neutral wordings.

    python experiments/02_persona_geometry.py --model Qwen/Qwen2.5-7B-Instruct

Beside each result stands what would refute it. Captures resume; figures/<name>/ has tables, figures and directions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import probe
from probe.stages.directions import geometry_tables, write_directions

POSITION = "prompt_end"


def show(title: str, table: pd.DataFrame, refuted: str) -> None:
    """One finding: its numbers, and what would speak against it."""
    print(f"\n{title}\nRefuted by: {refuted}\n{table.round(2).to_string()}")


def by_layer(table: pd.DataFrame, index: list[str], value: str = "value") -> pd.DataFrame:
    """One line per index, one column per residual point, over all cases at the end of the prompt."""
    rows = table[(table["position"] == POSITION) & (table["stratum"] == "all")]
    return rows.pivot_table(index=index, columns="layer", values=value, sort=False)


def main(arguments: argparse.Namespace) -> None:
    """Capture once, then read off size, likeness, stability and the parts of every persona's direction."""
    given = [f"model.id={arguments.model}"] if arguments.model else []
    named = [f"name=persona-geometry-{Path(arguments.model).name.partition('@')[0]}"] if arguments.model else []
    study = probe.Study.load(arguments.study, overrides=[*named, *given, *arguments.set], limit=arguments.limit)
    store = probe.run(study)
    found = geometry_tables(store)

    # Size. A persona that moves the stream no further than another wording of "helpful assistant" is no persona.
    raw = {name: table[table["view"] == "raw"] for name, table in vars(found).items() if "view" in table}
    neutral = raw["norms"][raw["norms"]["base"] == "controls"]
    show("Shift from the neutral wordings", by_layer(neutral, ["persona"]), "no further than the line below")
    show("One neutral wording from the others", by_layer(neutral, ["base"], "reworded"), "as large as the personas")

    # Is there one direction to speak of? Two halves of the cases must agree, far above the floor.
    halves = found.stability[(found.stability["method"] == "split-half") & (found.stability["base"] == "none")]
    show("Cosine of two halves of the cases", by_layer(halves, ["persona"]), "no higher than the floor")
    show("Floor: no common shift", by_layer(halves, ["persona"], "floor"), "as high as the cosines above")

    # Whose is it? What all personas share is "some persona", not this one; wordings of one persona must agree more.
    show("Share common to all personas", by_layer(found.agreement, ["base", "view"]), "1: there is one direction only")
    apart = raw["wordings"][raw["wordings"]["measure"] == "apart"]
    show("Own wordings agree more than other personas' by", by_layer(apart, ["persona"]), "0: words, not personas")

    # Role and style: the cosine of bold's shift on two roles; interaction 0 = they add up, 1 = unrelated shifts.
    if len(found.role_style):
        for measure, refuted in (("style_cosine", "near 0, above all whitened"), ("interaction", "near 1")):
            rows = found.role_style[found.role_style["measure"] == measure]
            shown = by_layer(rows, ["view", "style", "role", "other_role"])
            show(f"{measure}: is a style one direction on two roles?", shown, refuted)

    written = write_directions(store, Path("figures") / study.name, found=found)
    print(f"\nwrote {len(written)} files to figures/{study.name}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--model", help="a hub id or a folder; default: the study file's")
    parser.add_argument("--limit", type=int, help="so many cases")
    parser.add_argument("--set", action="append", default=[], help="any setting of the study file: a.b=c")
    main(parser.parse_args())
