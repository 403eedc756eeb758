"""Metrics, calibration, risk and statistics of a table of cells. Knows no model, tokenizer, activation or figure."""

from probe.behaviour.calibration import NullBand, ece, null_band, reliability
from probe.behaviour.comparisons import FAMILY, compare, paired_difference, signs_differ
from probe.behaviour.intervals import agresti_min, wilson
from probe.behaviour.metrics import Settings, metrics
from probe.behaviour.outcomes import Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.pairing import pair_keys, pair_rows
from probe.behaviour.ranks import mean_reciprocal_rank
from probe.behaviour.risk import CUTS
from probe.behaviour.significance import holm, mcnemar, paired_t
from probe.values import ALL

__all__ = [
    "ALL",
    "CUTS",
    "FAMILY",
    "NullBand",
    "Outcomes",
    "Settings",
    "agresti_min",
    "compare",
    "ece",
    "holm",
    "mcnemar",
    "mean_reciprocal_rank",
    "metrics",
    "null_band",
    "pair_keys",
    "pair_rows",
    "paired_difference",
    "paired_t",
    "planned_outcomes",
    "read_outcomes",
    "reliability",
    "signs_differ",
    "wilson",
]
