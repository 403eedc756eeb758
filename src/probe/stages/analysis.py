"""The analysis stages: from an open store, or a table, to tidy tables. Imports no torch; captures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import behaviour, mechanism
from probe.behaviour import Settings
from probe.mechanism.geometry.summed_shift import shift_of_lines
from probe.stages.activations import added_up, without_content
from probe.stages.arms import arms_table
from probe.store import Store
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest
from probe.values.spreadsheets import inert

DEFAULT_BASE = "none"

VARIANCE_OF = ("accuracy", "accuracy_latent", "consistency_strict", "risk_propensity")
"""The metrics whose variance is split into persona, wording, seed and case."""

MAIN_POSITION = "prompt_end"
"""Where the figure and the terminal show the residual shift, if it was captured; the table has every position."""


@dataclass(frozen=True)
class Question:
    """What is asked of a table of cells; None stands for what the table, or its study, says itself.

    ``base`` is the persona that the others are compared with; ``controls`` are the personas whose wordings make the
    noise floor (by default those of the role ``control``). ``options`` stand in rising urgency. ``settings`` hold the
    bins of the ECE and the cut between over- and under-triage; ``equal_mass`` draws the reliability bins so.
    ``site`` is the answer site at which the latent label is read.
    """

    base: str | None = None
    controls: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    high_risk: str | None = None
    settings: Settings = field(default_factory=Settings)
    equal_mass: bool = False
    site: str = behaviour.DEFAULT_SITE

    @property
    def labels(self) -> dict[str, Any]:
        """What every function of ``behaviour`` may be told of the options."""
        return {"options": self.options, "high_risk": self.high_risk}


@dataclass(frozen=True, eq=False)
class BehaviourTables:
    """What a table of cells says, in the tables of :mod:`probe.behaviour`; one that the cells do not allow is empty.

    ``comparisons`` need a base persona and another, ``floor`` control wordings, ``positions`` and ``rotations`` two
    rotations, ``variance`` two wordings or two seeds of some persona, ``sites`` and ``causes`` both labels.
    ``arms`` say what each intervention is.
    ``metrics.attrs["absent"]`` says which metrics are not there, and which columns they need.
    """

    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    reliability: pd.DataFrame
    sites: pd.DataFrame = field(default_factory=pd.DataFrame)
    risk: pd.DataFrame = field(default_factory=pd.DataFrame)
    causes: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    positions: pd.DataFrame = field(default_factory=pd.DataFrame)
    rotations: pd.DataFrame = field(default_factory=pd.DataFrame)
    omnibus: pd.DataFrame = field(default_factory=pd.DataFrame)
    floor: pd.DataFrame = field(default_factory=pd.DataFrame)
    variance: pd.DataFrame = field(default_factory=pd.DataFrame)
    arms: pd.DataFrame = field(default_factory=pd.DataFrame)


def study_of(store: Store | pd.DataFrame) -> Mapping[str, Any]:
    """The study of the store's latest run; of the manifest where no run was recorded, or of a table of that store."""
    if isinstance(store, pd.DataFrame):
        return dict(store.attrs.get("study", {}))
    for run in reversed(store.runs()):
        if run.get("study"):
            return dict(run["study"])
    return dict(store.study)


def cells(source: Store | pd.DataFrame, asked: Question | None = None) -> pd.DataFrame:
    """The table of cells behind an analysis: those whose answer was generated, without the reads of given texts and, of
    a store, the cases whose input says nothing. Each intervention's rows are arms beside the personas.

    Its latent label is that of the answer site which is asked for.

    Raises:
        ProbeError: there is no row to analyse, or no label was read at the site.
    """
    whole = source if isinstance(source, pd.DataFrame) else source.table()
    if isinstance(source, Store) and (free := without_content(source)):
        whole = whole[~whole["case"].isin(list(free))].reset_index(drop=True)
    table = behaviour.arms(behaviour.generated(whole))
    if table.empty and not whole.empty:
        raise ProbeError(
            f"all {len(whole):,} cells are reads of given texts, and no answer was generated that could be analysed; "
            "`store.table()` has their given_logp (a study without `given.only` generates answers too)"
        )
    if table.empty:
        raise ProbeError("there is no captured cell to analyse yet; run `probe capture` first")
    return table if asked is None else behaviour.latent_at(table, asked.site, options=asked.options)


def behaviour_tables(source: Store | pd.DataFrame, question: Question | None = None) -> BehaviourTables:
    """Everything that behaviour says of a store or of a user's own table.

    The base is by default the study's own, else ``none``; without that default in the table there is no comparison.
    Where there are control wordings, every persona is compared with their mean as well. The study's planned contrasts
    are tested as such.

    Raises:
        ProbeError: the base or a control that was asked for is not in the table, or the table breaks a rule of
            ``read_outcomes``.
    """
    asked = question or Question()
    table = cells(source, asked)
    outcomes = behaviour.read_outcomes(table, **asked.labels)
    both = {"y_gen", "y_latent"} <= outcomes.told
    own = table[table["arm"] == ""] if "arm" in table else table  # personas alone
    neutral = behaviour.control_personas(table, asked.controls)
    measured = behaviour.metrics(table, **asked.labels, settings=asked.settings)
    options, empty = asked.options, pd.DataFrame()
    return BehaviourTables(
        metrics=measured,
        comparisons=comparisons(source, asked),
        reliability=_reliability(table, asked) if "logp_<label>" in outcomes.told else empty,
        sites=behaviour.consistency_by_site(cells(source), options=options) if both else empty,
        risk=behaviour.risk_by_cut(table, **asked.labels),
        causes=behaviour.causes(table, options=options) if both else empty,
        rates=_rates(table, options) if "y_gen" in outcomes.told else empty,
        positions=behaviour.position_bias(table, options=options) if _varies(table, "rotation") else empty,
        rotations=behaviour.accuracy_by_rotation(table, options=options) if _varies(table, "rotation") else empty,
        omnibus=behaviour.cochran(own, **asked.labels) if own["persona"].nunique() > 2 else empty,
        floor=behaviour.noise_floor(table, controls=neutral, **asked.labels) if neutral else empty,
        variance=_variance(own, asked),
        arms=arms_table(source) if isinstance(source, Store) else empty,
    )


def comparisons(source: Store | pd.DataFrame, asked: Question) -> pd.DataFrame:
    """Every persona against the base, the bases of planned contrasts, and the mean of the control wordings.

    Empty without the default base, or without another persona. ``attrs["waiting"]``: planned contrasts without cells.
    """
    table = cells(source, asked)
    personas = list(table["persona"].unique())
    base = _base(source, asked.base, personas)
    if base not in personas or len(personas) < 2:
        return pd.DataFrame()
    confirm, waiting = _planned_contrasts(source, base, table)
    neutral = behaviour.control_personas(table, asked.controls)
    bases = [base, *(contrast["base"] for contrast in confirm), *([behaviour.CONTROLS] if neutral else [])]
    compared = behaviour.compare(
        table,
        list(dict.fromkeys(bases)),
        confirm=confirm,
        controls=neutral or None,
        **asked.labels,
        settings=asked.settings,
    )
    compared.attrs["waiting"] = waiting
    return compared


def _planned_contrasts(
    source: Store | pd.DataFrame, base: str, table: pd.DataFrame
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The contrasts that the study planned: those whose arms were captured, and those that wait for theirs."""
    planned = study_of(source).get("confirm", ())
    found = [{"base": base} | {key: value for key, value in one.items() if value is not None} for one in planned]
    personas, strata = set(table["persona"]), {ALL, *table.get("stratum", ())}
    names = {"persona": personas, "base": personas, "stratum": strata}
    here = [one for one in found if all(one.get(key, ALL) in known for key, known in names.items())]
    return here, [one for one in found if one not in here]


def _reliability(table: pd.DataFrame, asked: Question) -> pd.DataFrame:
    return behaviour.reliability(
        table, options=asked.options, n_bins=asked.settings.n_bins, equal_width=not asked.equal_mass
    )


def _rates(table: pd.DataFrame, options: Sequence[str] | None) -> pd.DataFrame:
    """How answers were read, by persona, and by role and category of persona or case where the table has them."""
    groups = ["persona", *(name for name in ("role", "category") if _varies(table, name))]
    parts = [behaviour.answer_rates(table, by=name, options=options).assign(by=name) for name in groups]
    return pd.concat(parts, ignore_index=True)


def _variance(table: pd.DataFrame, asked: Question) -> pd.DataFrame:
    """Variance over personas, wordings, seeds and cases, where a persona has several wordings or seeds."""
    several = [name for name in ("wording", "seed") if name in table and _several(table, name)]
    return behaviour.variance_components(table, VARIANCE_OF, **asked.labels) if several else pd.DataFrame()


def _several(table: pd.DataFrame, name: str) -> bool:
    """Has some persona more than one value of a column?"""
    return bool(table.groupby("persona")[name].nunique().gt(1).any())


def _varies(table: pd.DataFrame, name: str) -> bool:
    return name in table and table[name].nunique() > 1


def _base(source: Store | pd.DataFrame, asked: str | None, personas: Sequence[str]) -> str:
    """The base persona. One that was asked for must be there; the default need not."""
    if asked is None:
        return str(study_of(source).get("base", DEFAULT_BASE))
    if asked not in personas:
        raise ProbeError(f"the base persona {asked!r} is not in the table. {nearest(asked, personas, 'persona')}")
    return asked


def shift_tables(store: Store, *, base: str | None = None) -> pd.DataFrame:
    """Size of every persona's residual shift from the base, by residual point, at every captured position.

    Empty where the study's base persona was not captured.

    Raises:
        ProbeError: the base that was asked for was not captured.
    """
    found = cells(store)
    personas = list(dict.fromkeys(found.loc[found["row_id"].isin(_unedited(store)), "persona"]))
    base = _base(store, base, personas)
    if base not in personas:
        return pd.DataFrame()
    capture = store.manifest["capture"]
    if store.layout.moments is not None:
        lines = added_up(store)
        return _joined([shift_of_lines(lines, personas, base=base, position=name) for name in capture["positions"]])
    views = {persona: store.select(persona=persona, given="", intervention="") for persona in personas}
    tables = {persona: view.table() for persona, view in views.items()}
    for table in tables.values():
        table.attrs = {}  # pandas copies them, a whole study, with every selection of rows

    def read(persona: str, layer: int, position: str) -> tuple[pd.DataFrame, np.ndarray]:
        resid = views[persona].resid(layer=layer, position=position, missing="drop")
        return tables[persona].iloc[resid.kept], np.asarray(resid)

    parts = [
        mechanism.shift_by_layer(read, personas, capture["layers"], base=base, position=position)
        for position in capture["positions"]
    ]
    return _joined(parts)


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else parts[0]


def _unedited(store: Store) -> set[str]:
    return {row.cell.row_id for row in store.plan.rows if not row.cell.condition.intervention}


def main_shifts(shifts: pd.DataFrame) -> pd.DataFrame:
    """The shifts at ``prompt_end``, or at the first position that has any where that was not captured."""
    if shifts.empty:
        return shifts
    found = list(dict.fromkeys(shifts["position"]))
    return shifts[shifts["position"] == (MAIN_POSITION if MAIN_POSITION in found else found[0])]


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all strata."""
    return table[table["stratum"] == ALL]


def save_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Each table as ``<name>.csv`` in a folder; a text that a spreadsheet would run as a formula is quoted."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in tables.items():
        if table.empty:
            continue
        path = folder / f"{name}.csv"
        table.map(inert).to_csv(path, index=False)
        written.append(path)
    return written
