"""Metrics, calibration, risk and statistics of a table of cells. Knows no model, tokenizer, activation or figure."""

from probe.behaviour.calibration import NullBand, ece, null_band
from probe.behaviour.causes import NEAR_TIE, causes
from probe.behaviour.columns import INTERVENED, arms, generated, rename_columns
from probe.behaviour.comparisons import compare
from probe.behaviour.contrasts import FAMILY, paired_difference
from probe.behaviour.controls import CONTROLS, control_personas
from probe.behaviour.families import Confirm, signs_differ
from probe.behaviour.intervals import agresti_min, wilson
from probe.behaviour.latent_sites import DEFAULT_SITE, latent_at
from probe.behaviour.measures import Settings
from probe.behaviour.metrics import metrics
from probe.behaviour.noise import noise_floor
from probe.behaviour.omnibus import cochran
from probe.behaviour.outcomes import Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.pairing import pair_keys, pair_rows
from probe.behaviour.ranks import agreement, rankings
from probe.behaviour.rates import answer_rates
from probe.behaviour.reliability import reliability
from probe.behaviour.risk import CUTS
from probe.behaviour.risk_table import risk_by_cut
from probe.behaviour.rotations import accuracy_by_rotation, position_bias
from probe.behaviour.significance import benjamini_hochberg, holm, mcnemar, paired_t
from probe.behaviour.sites import consistency_by_site
from probe.behaviour.variance import variance_components
from probe.values import ALL

__all__ = [
    "ALL",
    "CONTROLS",
    "CUTS",
    "DEFAULT_SITE",
    "FAMILY",
    "INTERVENED",
    "NEAR_TIE",
    "Confirm",
    "NullBand",
    "Outcomes",
    "Settings",
    "accuracy_by_rotation",
    "agreement",
    "agresti_min",
    "answer_rates",
    "arms",
    "benjamini_hochberg",
    "causes",
    "cochran",
    "compare",
    "consistency_by_site",
    "control_personas",
    "ece",
    "generated",
    "holm",
    "latent_at",
    "mcnemar",
    "metrics",
    "noise_floor",
    "null_band",
    "pair_keys",
    "pair_rows",
    "paired_difference",
    "paired_t",
    "planned_outcomes",
    "position_bias",
    "rankings",
    "read_outcomes",
    "reliability",
    "rename_columns",
    "risk_by_cut",
    "signs_differ",
    "variance_components",
    "wilson",
]
