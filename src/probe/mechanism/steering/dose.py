"""Equal dose: the strength at which an edit moves a model as far as a prompt does. Knows curves; knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probe.values import ProbeError

GRID = (0.02, 0.05, 0.12, 0.3, 0.7, 1.6, 4.0)
"""Strengths that every direction is tried at first, in units of the mean residual norm at the site."""

ROUNDS = 8
"""How often at most a strength is corrected by what was measured at it. Every direction has the same budget."""

TOLERANCE = 0.02
"""A dose within 2 % of the one wanted is equal to it: no further strength is tried."""

EQUAL_WITHIN = 0.10
"""A dose further than this share from the one wanted is not equal to it, however many strengths were tried. A
divergence grows about with the square of a strength, so that this leaves 5 % of a strength open; and it is five times
the tolerance, for curves that bend. Where a dose jumps over the one wanted, no strength has it."""


@dataclass(frozen=True)
class DoseCurve:
    """Doses (mean divergence from the unsteered model, nats) measured at strengths above 0; at 0 the dose is 0.

    ``failed``: strengths at which the dose was not finite.
    """

    strengths: tuple[float, ...] = ()
    doses: tuple[float, ...] = ()
    failed: tuple[float, ...] = ()

    @property
    def tried(self) -> tuple[float, ...]:
        """Every strength that was measured, with those that gave nothing."""
        return self.strengths + self.failed

    def with_measured(self, strength: float, dose: float) -> DoseCurve:
        """The curve with one more measurement, or with one more strength that gave none."""
        if np.isfinite(dose):
            return self.with_point(strength, dose)
        return self if strength in self.failed else replace(self, failed=(*self.failed, strength))

    def with_point(self, strength: float, dose: float) -> DoseCurve:
        """The curve with one more measurement, in the order of the strengths.

        Raises:
            ProbeError: the strength is not above 0, or the dose is no finite number from 0.
        """
        if not strength > 0 or not np.isfinite(strength) or not np.isfinite(dose) or dose < 0:
            raise ProbeError(
                f"a dose is a finite number from 0, at a strength above 0; found {dose} at {strength}; leave "
                "measurements that are not finite out, and count them"
            )
        if strength in self.strengths:
            return self
        both = sorted([*zip(self.strengths, self.doses, strict=True), (strength, dose)])
        strengths, doses = zip(*both, strict=True)
        return replace(self, strengths=strengths, doses=doses)

    def crossing(self, target: float) -> float | None:
        """The smallest strength at which the curve comes up to a dose, None where no measured strength reaches it.

        Between two measurements the curve is taken as a power law, and below the first as that of the first two.
        """
        for i, (strength, dose) in enumerate(zip(self.strengths, self.doses, strict=True)):
            if dose < target:
                continue
            if i and self.doses[i - 1] > 0:
                share = np.log(target / self.doses[i - 1]) / np.log(dose / self.doses[i - 1])
                return float(self.strengths[i - 1] * (strength / self.strengths[i - 1]) ** share)
            found = strength * float((target / dose) ** (1 / self._power()))
            return max(found, self.strengths[i - 1]) if i else found
        return None

    def _power(self) -> float:
        """The exponent between the first two measurements; 2, that of a divergence near 0, where they tell none."""
        if len(self.strengths) < 2 or min(self.doses[:2]) <= 0:
            return 2.0
        rise = np.log(self.doses[1] / self.doses[0]) / np.log(self.strengths[1] / self.strengths[0])
        return float(np.clip(rise, 0.5, 6.0))

    def middle(self, target: float) -> float | None:
        """The middle, as a ratio, of the two measurements around the first crossing; None where there are no two."""
        at = self.crossing(target)
        if at is None or at <= self.strengths[0]:
            return at
        i = int(np.searchsorted(self.strengths, at * (1 - 1e-12)))
        return float(np.sqrt(self.strengths[i - 1] * self.strengths[i]))

    def nearest(self, target: float) -> tuple[float, float]:
        """The measurement nearest to a dose (as a ratio) among the two around its first crossing."""
        at = self.crossing(target)
        i = len(self.strengths) - 1 if at is None else int(np.searchsorted(self.strengths, at * (1 - 1e-12)))
        around = [k for k in (i - 1, i) if 0 <= k < len(self.strengths) and self.doses[k] > 0]
        if not around:
            return self.strengths[i], self.doses[i]
        best = min(around, key=lambda k: abs(np.log(self.doses[k] / target)))
        return self.strengths[best], self.doses[best]


@dataclass(frozen=True)
class EqualDose:
    """The strength at which a direction has the dose wanted, as measured; ``tries`` counts its measurements.

    ``reached`` is false where no strength that was tried has a dose within :data:`EQUAL_WITHIN` of the one wanted:
    ``strength`` is then the one with the nearest dose of the two around the crossing, or of the two largest where there
    is no crossing, and ``note`` says why. ``dose`` is NaN where none was finite.
    """

    strength: float
    dose: float
    target: float
    reached: bool
    tries: int
    note: str = ""


Measure = Callable[[Sequence[tuple[int, float]]], Sequence[float]]
"""Doses at (which curve, strength), measured together."""


def equal_doses(
    curves: Sequence[DoseCurve], target: float, measure: Measure, *, rounds: int = ROUNDS
) -> tuple[list[EqualDose], list[DoseCurve]]:
    """For each direction the strength with a dose, and its curve with what was measured on the way.

    Every direction begins with the same strengths and has the same number of rounds, whatever it is for. A dose that
    cannot be reached, or that a curve jumps over, is not replaced by another: it is told. What was not finite is left
    out and counted.

    Raises:
        ProbeError: the dose is not above 0: there is nothing to be equal to.
    """
    if not target > 0 or not np.isfinite(target):
        raise ProbeError(f"an equal dose needs one above 0 to be equal to, found {target}; this prompt moves nothing")
    found = list(curves)
    for turn in range(rounds):
        # Where a curve bends, interpolation keeps one end of its bracket: every other round halves it.
        asked = [
            (i, strength)
            for i, curve in enumerate(found)
            if (strength := rounded(curve.middle(target) if turn % 2 else curve.crossing(target))) is not None
            and abs(curve.nearest(target)[1] / target - 1) > TOLERANCE
            and strength not in curve.tried
        ]
        if not asked:
            break
        for (i, strength), dose in zip(asked, measure(asked), strict=True):
            found[i] = found[i].with_measured(strength, dose)
    return [_told(curve, target) for curve in found], found


def rounded(strength: float | None) -> float | None:
    """A strength in three digits: a second run finds the very same one, though its low bits differ."""
    return None if strength is None else float(f"{strength:.3g}")


def _told(curve: DoseCurve, target: float) -> EqualDose:
    """The weakest measured strength with the dose; of those around the first crossing the one with the nearest."""
    lost = f"; {len(curve.failed)} strengths gave no finite dose" if curve.failed else ""
    if not curve.strengths:
        return EqualDose(max(curve.failed, default=np.nan), np.nan, target, False, len(curve.tried), f"no dose{lost}")
    strength, dose = curve.nearest(target)
    if not _equal(dose, target):
        later = [one for one in zip(curve.strengths, curve.doses, strict=True) if _equal(one[1], target)]
        strength, dose = later[0] if later else (strength, dose)
    if _equal(dose, target):
        return EqualDose(strength, dose, target, True, len(curve.tried), lost.removeprefix("; "))
    if curve.crossing(target) is None:
        note = f"not reached: strength {strength:.3g} gives {dose / target:.2f} of the dose"
    else:
        i = next(k for k, one in enumerate(curve.doses) if one >= target)
        (low, under), (high, over) = ((0.0, 0.0), *zip(curve.strengths, curve.doses, strict=True))[i : i + 2]
        note = (
            f"no strength that was tried has it: from {under:.2g} to {over:.2g} nats between strengths {low:.3g} and "
            f"{high:.3g}, and {target:.2g} is wanted"
        )
    return EqualDose(strength, dose, target, False, len(curve.tried), note + lost)


def _equal(dose: float, target: float) -> bool:
    return bool(abs(dose / target - 1) <= EQUAL_WITHIN)
