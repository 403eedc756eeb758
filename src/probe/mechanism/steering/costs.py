"""What an arm costs beside what it moves: parsing, length, repetition, fluency, another task. Knows scores by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.mechanism.relation.verdicts import change
from probe.mechanism.steering.breakage import Health, mean_health

COSTS: Mapping[str, str] = {
    "parse_rate": "answers with a label (share)",
    "refusal_rate": "refusals (share)",
    "n_tokens": "tokens of the answer",
    "repetition": "repeated 4-grams (share)",
    "label_mass": "probability of all labels together",
    "entropy": "entropy of the next token (nats)",
    "fluency_none": "log-probability per token of the text without persona (nats)",
    "fluency_prompted": "log-probability per token of the text under the prompt (nats)",
    "off_target_accuracy": "accuracy on the other task (share)",
    "off_target_kl": "KL from no persona on the other task (nats)",
}
"""Every cost and its unit. The two fluencies are of the arm's own text, read by the model without a persona and by the
prompted one."""

SHARES = ("parse_rate", "refusal_rate", "off_target_accuracy")


@dataclass(frozen=True, eq=False)
class CostsOf:
    """The scores of one arm by case, NaN where a case has none; in every arm the same cases in the same order."""

    kind: str
    arm: str
    scores: Mapping[str, Float[np.ndarray, " case"]]

    @property
    def health(self) -> Health:
        """Whether the model still answers, by all that was measured."""
        known = self.scores
        return mean_health(known["label_mass"], known["entropy"], known.get("parse_rate"), known.get("repetition"))


def cost_table(
    persona: str, arms: Sequence[CostsOf], family: np.ndarray, references: Sequence[str] = ("none", "prompted")
) -> pd.DataFrame:
    """Every cost of every arm, and its difference from the arms of the reference kinds, in pairs by case.

    Tidy: persona, kind, arm, cost (:data:`COSTS`), value (mean over its cases), n, and for each reference
    ``from_none``, ``from_none_low``, ``from_none_high`` (95 %, clustered by family; Agresti-Min for shares). Cases
    without a score in one of the two are left out of their difference.
    """
    fixed = {kind: next((one for one in arms if one.kind == kind), None) for kind in references}
    rows = []
    for arm in arms:
        for name, own in arm.scores.items():
            known = own[~np.isnan(own)]
            row: dict[str, object] = {"persona": persona, "kind": arm.kind, "arm": arm.arm, "cost": name}
            row |= {"value": float(known.mean()) if len(known) else np.nan, "n": len(known)}
            for kind, other in fixed.items():
                if other is None or name not in other.scores or other is arm:
                    continue
                away = own - other.scores[name]
                top = 1.0 if name in SHARES else float(np.nanmax(np.abs(away), initial=0.0)) or 1.0
                found = change(away, family, top, binary=name in SHARES)
                row |= {f"from_{kind}": found.value, f"from_{kind}_low": found.low, f"from_{kind}_high": found.high}
            rows.append(row)
    return pd.DataFrame(rows)
