"""The verbs of ``import probe``. Knows the stages; a script needs no other module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from probe import behaviour
from probe.behaviour import Settings
from probe.stages.analysis import (
    BehaviourTables,
    Question,
    behaviour_tables,
    cells,
    comparisons,
    shift_tables,
    study_of,
)
from probe.stages.inside import look_inside
from probe.stages.places import figures_path
from probe.stages.policy import CapturePolicy
from probe.stages.reporting import write_report as _write_report
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError


def run(
    study: Study,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> Store:
    """Capture every cell of a study that its store does not hold yet, and return the open store.

    Calling it again resumes. ``store`` is by default ``cache/<study name>``. Rows that failed for good are listed by
    ``store.failures()``. ``policy`` says what happens to edited texts, values that are not finite and other numerics.

    Raises:
        ProbeError: the study, the model or the store refuses; nothing was written then.
    """
    from probe.stages.capture import capture

    return open_store(capture(study, store=store, fresh=fresh, policy=policy).store)


def metrics(
    source: Store | pd.DataFrame,
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
    site: str = behaviour.DEFAULT_SITE,
) -> pd.DataFrame:
    """Every metric by persona and stratum, tidy: metric, persona, stratum, value, low, high, n, planned, ...

    ``source`` is an open store, or a table of your own in the columns of ``Store.table()``; the options of a table, in
    rising urgency, come from ``options`` or from its ``logp_<label>`` columns, and without either the risk metrics are
    undefined. ``settings`` (:class:`probe.behaviour.Settings`) hold what the paper leaves open: the bins of the ECE and
    the cut between over- and under-triage. ``site`` is the answer site at which the latent label is read (``forced``,
    ``after_reasoning``, ...).

    Raises:
        ProbeError: the table breaks a rule of :func:`probe.behaviour.read_outcomes`, or has no label reads at the site.
    """
    table = cells(source, Question(options=_fixed(options), site=site))
    return behaviour.metrics(table, options=options, high_risk=high_risk, settings=settings)


def compare(
    source: Store | pd.DataFrame,
    base: str | None = None,
    *,
    controls: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
    site: str = behaviour.DEFAULT_SITE,
) -> pd.DataFrame:
    """Difference of every persona from the base persona, in pairs, with intervals, raw and adjusted p.

    A pair is one case under one condition (instruction, rotation, ...); intervals and tests cluster by case. Where
    there are control wordings (``controls``, else the personas of the role ``control``), every persona is compared with
    their mean too: ``base`` is ``controls`` in those rows. The contrasts that the study planned are a family of tests
    of their own. ``options``, ``high_risk``, ``settings`` and ``site`` as in :func:`metrics`.

    Raises:
        ProbeError: the base persona is not in the table, or stands there alone.
    """
    asked = Question(base, _fixed(controls), _fixed(options), high_risk, settings or Settings(), site=site)
    compared = comparisons(source, asked)
    if compared.empty:
        raise ProbeError("a comparison needs the base persona and at least one other in the table; name it with base=")
    return compared


def noise_floor(
    source: Store | pd.DataFrame,
    *,
    controls: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> pd.DataFrame:
    """Every persona's effect against the spread of neutral control wordings, by metric and stratum.

    Raises:
        ProbeError: there are no control wordings.
    """
    return behaviour.noise_floor(cells(source), controls=controls, options=options, high_risk=high_risk)


def causes(
    source: Store | pd.DataFrame, *, near_tie: float = behaviour.NEAR_TIE, options: Sequence[str] | None = None
) -> pd.DataFrame:
    """Why stated and latent label differ: each cause's rate where they disagree and where they agree, by persona.

    ``near_tie`` is the latent margin, in nats, below which a label counts as nearly tied.

    Raises:
        ProbeError: there is no stated or no latent label.
    """
    return behaviour.causes(cells(source), near_tie=near_tie, options=options)


def variance_components(
    source: Store | pd.DataFrame,
    metrics: Sequence[str] = ("accuracy",),
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> pd.DataFrame:
    """How much a score varies over personas, wordings, cases and runs; what the design cannot tell apart is said.

    Raises:
        ProbeError: a metric is unknown.
    """
    return behaviour.variance_components(cells(source), metrics, options=options, high_risk=high_risk)


def tables(source: Store | pd.DataFrame, question: Question | None = None) -> BehaviourTables:
    """Every table of behaviour at once: metrics, comparisons, consistency by site, causes, noise floor, variance, ...

    Raises:
        ProbeError: what was asked for is not in the table, or it breaks a rule of ``read_outcomes``.
    """
    return behaviour_tables(source, question)


def shift(store: Store, base: str | None = None) -> pd.DataFrame:
    """Size of every persona's residual shift from the base, by residual point, position and stratum.

    Raises:
        ProbeError: the store holds no cell.
    """
    return shift_tables(store, base=base)


def write_report(store: Store, folder: str | Path, *, base: str | None = None) -> list[Path]:
    """Write figures (SVG, PDF, PNG), tables (CSV) and ``report.html`` into a folder; returns every path written.

    What the study's ``analyses`` say of the inside is made anew, as by ``probe report``.

    Raises:
        ProbeError: the store holds no cell, the base was not captured, or a file stands where the folder should.
    """
    folder = figures_path("", Path(folder))
    found, shifts = behaviour_tables(store, Question(base=base)), shift_tables(store, base=base)
    title = str(study_of(store).get("name", store.place.url.rstrip("/").rpartition("/")[2]))
    inside = look_inside(store, study_of(store).get("analyses", ()), base=base)
    return _write_report(store, found, shifts, folder, title=title, inside=inside)


def _fixed(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
