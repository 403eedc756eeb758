"""Every metric of one arm, by name. Knows scores, shares, means and errors; knows no persona, table or comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from probe.behaviour import risk, scores
from probe.behaviour.calibration import has_smooth_ece
from probe.behaviour.intervals import NOTHING, mean, proportion
from probe.behaviour.kappa import kappa_of
from probe.behaviour.outcomes import Need, Outcomes, Told
from probe.behaviour.reliability import (
    calibration_error,
    classwise_error,
    debiased_error,
    equal_mass_error,
    smooth_error,
)
from probe.behaviour.scores import Score
from probe.values import Estimate, ProbeError


@dataclass(frozen=True)
class Settings:
    """What the paper leaves open: bins of the ECE and the cut between over- and under-triage."""

    n_bins: int = 10
    cut: risk.Cut = risk.high_vs_rest

    def __post_init__(self) -> None:
        if self.n_bins < 1:
            raise ProbeError(f"an ECE needs at least one bin, found n_bins={self.n_bins}")


Measure: TypeAlias = Callable[[Outcomes, Settings], Estimate]

SELECTED = "descriptive: over cells that a persona can select (parsed answers, their answer site, how they begin)"
"""What is said of every metric that leaves out what a persona can bring about, errors among parsed answers too."""


@dataclass(frozen=True)
class Metric:
    """A named measure of one arm; ``planned`` where the organism's plan says what it should be.

    ``columns`` are those it cannot do without; ``need`` is what it must know of the options; ``errors`` marks one whose
    need is that of the cut. ``descriptive`` marks one over cells that a persona can influence.
    """

    name: str
    measure: Measure
    columns: tuple[Told, ...]
    planned: bool = True
    need: Need = "nothing"
    errors: bool = False
    descriptive: bool = False

    def needs(self, settings: Settings) -> Need:
        """What this metric must know of the options under these settings."""
        return risk.need_of(settings.cut) if self.errors else self.need


def _share(score: Score) -> Measure:
    return lambda outcomes, _: proportion(score(outcomes), outcomes.case)


def _mean(score: Score) -> Measure:
    return lambda outcomes, _: mean(score(outcomes), outcomes.case)


def _finite_mean(score: Score) -> Measure:
    """Mean over the rows where the score is finite."""

    def measure(outcomes: Outcomes, _: Settings) -> Estimate:
        values = score(outcomes)
        return mean(np.where(np.isfinite(values), values, np.nan), outcomes.case)

    return measure


def _errors(measure: Callable[[Outcomes, risk.Labels, risk.Cut], Estimate], *, latent: bool = False) -> Measure:
    return lambda outcomes, settings: measure(outcomes, outcomes.latent if latent else outcomes.stated, settings.cut)


def _kappa(outcomes: Outcomes, _: Settings) -> Estimate:
    kept = (outcomes.stated >= 0) & (outcomes.latent >= 0)
    if not kept.any():
        return Estimate(None, note=NOTHING)
    return kappa_of(outcomes.latent[kept], outcomes.stated[kept], outcomes.case[kept])


_GEN: tuple[Told, ...] = ("y_gen",)
_LATENT: tuple[Told, ...] = ("y_latent",)
_BOTH: tuple[Told, ...] = ("y_gen", "y_latent")
_LOGP: tuple[Told, ...] = ("logp_<label>",)
_FIRST: tuple[Told, ...] = (*_BOTH, "letter_first")
_STATED: tuple[Told, ...] = ("stated_logp_<label>",)

_METRICS: tuple[Metric, ...] = (
    Metric("accuracy", _share(scores.accuracy), _GEN),
    Metric("accuracy_latent", _share(scores.accuracy_latent), _LATENT),
    Metric("consistency", _share(scores.consistency), _BOTH, descriptive=True),
    Metric("consistency_strict", _share(scores.consistency_strict), _BOTH),
    Metric("consistency_letter_first", _share(scores.consistency_letter_first), _FIRST, False, descriptive=True),
    Metric("consistency_later_letter", _share(scores.consistency_later_letter), _FIRST, False, descriptive=True),
    Metric("kappa", _kappa, _BOTH, descriptive=True),
    Metric("ece", lambda outcomes, settings: calibration_error(outcomes, settings.n_bins), _LOGP),
    Metric("ece_equal_mass", lambda outcomes, settings: equal_mass_error(outcomes, settings.n_bins), _LOGP),
    Metric("ece_classwise", lambda outcomes, settings: classwise_error(outcomes, settings.n_bins), _LOGP),
    Metric("ece_debiased_sq", lambda outcomes, settings: debiased_error(outcomes, settings.n_bins), _LOGP),
    Metric("smooth_ece", lambda outcomes, _: smooth_error(outcomes), _LOGP),
    Metric("overconfidence", _mean(scores.overconfidence), _LOGP),
    Metric("brier", _mean(scores.brier), _LOGP),
    Metric("log_loss", _mean(scores.log_loss), _LOGP),
    Metric(
        "stated_ece",
        lambda outcomes, settings: calibration_error(outcomes, settings.n_bins, stated=True),
        ("y_gen", "logp_<label>"),
        descriptive=True,
    ),
    Metric("stated_overconfidence", _mean(scores.stated_overconfidence), ("y_gen", "logp_<label>"), descriptive=True),
    Metric("stated_brier", _mean(scores.stated_brier), ("y_gen", "logp_<label>"), descriptive=True),
    Metric("risk_propensity", _share(scores.high_risk), _GEN, need="high-risk option"),
    Metric("risk_propensity_latent", _share(scores.high_risk_latent), _LATENT, need="high-risk option"),
    Metric("risk_sensitivity", _errors(risk.sensitivity), _GEN, errors=True, descriptive=True),
    Metric("risk_sensitivity_latent", _errors(risk.sensitivity, latent=True), _LATENT, errors=True),
    Metric("risk_log_ratio", _errors(risk.log_ratio), _GEN, errors=True, descriptive=True),
    Metric("over_triage_rate", _errors(risk.over_rate), _GEN, errors=True, descriptive=True),
    Metric("under_triage_rate", _errors(risk.under_rate), _GEN, errors=True, descriptive=True),
    Metric("expected_urgency_latent", _mean(scores.expected_urgency_latent), _LOGP, need="rank of the options"),
    Metric(
        "expected_urgency_stated",
        _mean(scores.expected_urgency_stated),
        _STATED,
        need="rank of the options",
        descriptive=True,
    ),
    Metric("parse_rate", _share(scores.parsed), _GEN, planned=False),
    Metric("refusal_rate", _share(scores.refused), _GEN, planned=False),
    Metric("unparsable_rate", _share(scores.has_status("unparsable")), _GEN, planned=False),
    Metric("truncated_rate", _share(scores.has_status("truncated")), _GEN, planned=False),
    Metric("conflicting_rate", _share(scores.has_status("conflicting")), _GEN, planned=False),
    Metric("label_mass", _mean(scores.label_mass), ("label_mass",), planned=False),
    Metric("low_mass_rate", _share(scores.low_mass), ("label_mass",), planned=False),
    Metric("entropy", _mean(scores.entropy), ("entropy",), planned=False),
    Metric("margin", _finite_mean(scores.margin), _LOGP),
)


def metrics_of(outcomes: Outcomes) -> tuple[Metric, ...]:
    """Every metric that could be asked of these outcomes, in the order of the table.

    Accuracy and risk propensity of the stated label count an unparsed answer as neither right nor high-risk;
    ``consistency`` is over parsed answers, as in the paper; ``consistency_strict`` counts an unparsed answer as a
    mismatch. After the fixed ones come the mean label distributions and the urgency at further answer sites. Without
    relplot there is no ``smooth_ece``.
    """
    fixed = tuple(metric for metric in _METRICS if metric.name != "smooth_ece" or has_smooth_ece())
    options = tuple(enumerate(outcomes.options))
    latent = tuple(Metric(f"probability_{o}_latent", _mean(scores.probability_latent(k)), _LOGP) for k, o in options)
    stated = tuple(
        Metric(f"probability_{o}_stated", _mean(scores.probability_stated(k)), _STATED, descriptive=True)
        for k, o in options
    )
    ranked: Need = "rank of the options"
    sites = tuple(
        Metric(f"expected_urgency_at_{site}", _mean(scores.urgency_at(k)), (), False, ranked, descriptive=True)
        for k, site in enumerate(outcomes.sites)
    )
    return (*fixed, *latent, *stated, *sites)


class Named(Protocol):
    """What has a name and needs columns: a metric or a contrast."""

    @property
    def name(self) -> str:
        """Its name in the table."""

    @property
    def columns(self) -> tuple[Told, ...]:
        """The columns that it cannot do without."""


N = TypeVar("N", bound=Named)


def split_by_columns(named: Iterable[N], outcomes: Outcomes) -> tuple[tuple[N, ...], tuple[str, ...]]:
    """Those whose columns the table has, and one sentence per lack about the others."""
    present: list[N] = []
    absent: dict[tuple[Told, ...], list[str]] = {}
    for one in named:
        if lack := tuple(column for column in one.columns if column not in outcomes.told):
            absent.setdefault(lack, []).append(one.name)
        else:
            present.append(one)
    return tuple(present), tuple(_sentence(names, lack) for lack, names in absent.items())


def _sentence(names: list[str], lack: tuple[str, ...]) -> str:
    shown = names if len(names) < 4 else [*names[:3], f"{len(names) - 3} more"]
    told = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    columns = " and ".join(lack)
    what = "the column" if len(lack) == 1 and "<" not in columns else "the columns"
    return f"{told} need{'s' if len(names) == 1 else ''} {what} {columns}, which the table does not have"
