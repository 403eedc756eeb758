"""The relation of latent and stated label, of a study, a store or a table. Imports no torch; captures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from probe import behaviour
from probe.mechanism.relation.explanation import Settings, prediction
from probe.mechanism.relation.flips import flip_table
from probe.mechanism.relation.locus import loci, locus_table
from probe.mechanism.relation.sides import sides_with
from probe.mechanism.relation.verdict_table import MAIN_OUTCOME, relation
from probe.mechanism.relation.verdicts import MARGIN
from probe.mechanism.relation.who_changes import who_changes
from probe.report.drawn import save
from probe.report.relation import relation_figures
from probe.stages.activations import activations, analysed
from probe.stages.analysis import DEFAULT_BASE, Question, cells, save_tables, study_of
from probe.stages.places import figures_path
from probe.stages.targets import TABLES, open_target, read_table
from probe.stages.terminal import announce_files, say
from probe.stages.terminal_relation import show_relation
from probe.store import Store
from probe.store.sites import NEEDS_ROWS
from probe.values import ProbeError
from probe.values.nearest import nearest


@dataclass(frozen=True, eq=False)
class RelationTables:
    """``relation``: one verdict per persona, base and stratum; ``locus``: T, L and D of every outcome and read;
    ``flips``: which labels move. With residuals also ``prediction`` (of the disagreement, beyond the outputs),
    ``who_changes`` and ``sides`` (the sides-with curve); empty without."""

    relation: pd.DataFrame
    locus: pd.DataFrame
    flips: pd.DataFrame
    who_changes: pd.DataFrame = field(default_factory=pd.DataFrame)
    prediction: pd.DataFrame = field(default_factory=pd.DataFrame)
    sides: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Asked:
    """What ``probe relate`` may be told beside the question: the margin of equivalence, the outcome of the verdict, and
    how many permutations stand behind each p."""

    delta: float = MARGIN
    outcome: str = MAIN_OUTCOME
    permutations: int = 199


def relate(
    source: Store | pd.DataFrame, question: Question | None = None, asked: Asked | None = None
) -> RelationTables:
    """Where each persona's effect is visible; of a store also what its residuals say of the disagreement.

    The bases are the mean of the control wordings, where there are any, and the study's base (by default ``none``); a
    base that is asked for comes first. What residuals are asked is against the first base that is a persona.

    Raises:
        ProbeError: there is no base, or the table breaks a rule of ``probe.mechanism.relation.locus.loci``.
    """
    question, asked = question or Question(), asked or Asked()
    table = cells(source, question)
    bases = _bases(source, question, table)
    found = loci(table, base=bases, delta=asked.delta, controls=question.controls, **question.labels)
    if not found:
        raise ProbeError(
            f"a persona acts against a base, and there is no other persona than {' and '.join(bases)}; capture another"
        )
    if asked.outcome not in (known := list(dict.fromkeys(one.outcome for one in found))):
        raise ProbeError(f"there is no verdict of {asked.outcome!r}. {nearest(asked.outcome, known, 'outcome')}")
    tables = RelationTables(
        relation=relation(found, asked.outcome),
        locus=locus_table(found),
        flips=flip_table(table, base=bases, controls=question.controls, options=question.options),
    )
    return _with_residuals(tables, source, question, bases, asked) if isinstance(source, Store) else tables


def run_relate(
    target: str | Path,
    question: Question,
    asked: Asked,
    *,
    store: str | Path | None = None,
    out: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> None:
    """The relation as sentences here, and as tables and figures in a folder."""
    name, source = _source(target, store, columns or {})
    folder = figures_path(name, out)
    tables = relate(source, question, asked)
    show_relation(tables)
    written = save_tables(folder, vars(tables))
    for figure, drawn in relation_figures(tables.relation, tables.flips, tables.sides, tables.prediction).items():
        written += save(drawn, folder, figure)
    announce_files(folder, written)


def _source(
    target: str | Path, store: str | Path | None, columns: Mapping[str, str]
) -> tuple[str, Store | pd.DataFrame]:
    path = Path(target)
    if path.suffix.lower() in TABLES and not path.is_dir() and store is None:
        return path.stem, read_table(path, columns)
    if columns:
        raise ProbeError(f"{target} is no table: its columns have their names already; leave --columns out")
    return open_target(target, store=store)


def _bases(source: Store | pd.DataFrame, question: Question, table: pd.DataFrame) -> list[str]:
    controls = [behaviour.CONTROLS] if behaviour.control_personas(table, question.controls) else []
    if question.base is not None:
        return list(dict.fromkeys([question.base, *controls]))
    own = str(study_of(source).get("base", DEFAULT_BASE))
    found = [*controls, *([own] if own in set(table["persona"].astype(str)) else [])]
    if not found:
        raise ProbeError(
            f"a persona acts against a base, and there are neither control wordings nor the persona {own!r}; name one "
            "with --base"
        )
    return found


def _with_residuals(
    tables: RelationTables, store: Store, question: Question, bases: list[str], asked: Asked
) -> RelationTables:
    acts = activations(store) if store.layout.moments is None else None
    told = analysed(store).table() if acts is None else acts.table
    table = behaviour.latent_at(told, question.site, options=question.options)
    table.attrs |= {key: value for key, value in question.labels.items() if value is not None}
    if question.controls is not None:
        table.attrs["controls"] = list(question.controls)
    base = next((one for one in bases if one != behaviour.CONTROLS), bases[0])
    settings = Settings(seed=store.plan.split_seed, permutations=asked.permutations)
    placebo = table.loc[table["role"] == "placebo", "persona"] if "role" in table else pd.Series(dtype=str)
    nonsense = "nonsense" if "nonsense" in set(placebo) else (str(placebo.iloc[0]) if len(placebo) else None)
    rng = np.random.default_rng(0)
    if acts is None:
        say(f"of the relation, what residuals predict: {NEEDS_ROWS}")
        rates = _or_said(lambda: who_changes(None, table, base=base, settings=settings, rng=rng))
        return replace(tables, who_changes=rates)
    acts = replace(acts, table=table)
    read = acts if "prompt_end" in acts.positions else None  # the rates need no residual
    return replace(
        tables,
        who_changes=_or_said(lambda: who_changes(read, table, base=base, settings=settings, rng=rng)),
        prediction=_or_said(
            lambda: prediction(acts, base=base, nonsense=nonsense, settings=settings, rng=rng, step=_progress)
        ),
        sides=_or_said(lambda: sides_with(acts, seed=settings.seed, step=_progress)),
    )


def _or_said(made: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table; where the cells do not allow it, a line that says why: the verdicts stand without it."""
    try:
        return made()
    except ProbeError as error:
        say(str(error))
        return pd.DataFrame()


def _progress(layers: Iterator[int]) -> Iterator[int]:
    yield from tqdm(list(layers), desc="layers", leave=False)
