"""One persona prompted against steered, by its labels alone: layer, doses, all arms and what they do. Runs sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from probe.mechanism.steering import controls
from probe.mechanism.steering.comparison import Arm, Comparison
from probe.mechanism.steering.dose import EqualDose, equal_doses
from probe.mechanism.steering.label_reads import divergence, outcomes
from probe.mechanism.steering.response import chosen_layer, distances, dose_response, layer_row
from probe.stages.steer_bench import Bench, Dosed, Push, ablation
from probe.stages.steer_reads import Edits, Reads
from probe.stages.steer_rules import by_rule
from probe.stages.steer_scene import Prompted
from probe.values import Case, ProbeError

RUNGS = (-1.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Multiples of the equal dose's strength at which a dose-response is drawn."""

LEAST_DOSE = 1e-5
"""Below this mean divergence, in nats, a prompt moves no label."""

N_DRAWN = 5
"""Random directions whose dose-response and distances are drawn."""


@dataclass(frozen=True, eq=False)
class LabelResult:
    """What the labels say of one persona: its comparison on the held-out cases, the arms' doses (the persona's own
    direction first), tables of the candidate layers, the dose-response and the distances, and which controls could not
    be compared."""

    comparison: Comparison
    dosed: tuple[Dosed, ...]
    layers: pd.DataFrame
    response: pd.DataFrame
    distances: pd.DataFrame
    rules: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PersonaRun:
    """One persona on a bench."""

    bench: Bench
    persona: str

    @property
    def prompt(self) -> Prompted:
        """The persona's own prompt."""
        return Prompted(self.persona)

    @cached_property
    def settled(self) -> Reads:
        """The prompted run on the validation cases, against the base."""
        cases = self.bench.scene.settling()
        return self.bench.read(self.prompt, cases, against=[self.bench.base], what=self.persona)

    @cached_property
    def wanted(self) -> float:
        """The prompt's dose: how far it moves the labels on the validation cases."""
        return float(divergence(self.settled.logp[0], self.plain.logp[0]).mean())

    @cached_property
    def plain(self) -> Reads:
        """The base on the validation cases, against the prompted run."""
        return self.bench.read(self.bench.base, self.bench.scene.settling(), against=[self.prompt], what=self.persona)

    def result(self) -> LabelResult:
        """Layer and strengths on the validation cases, and every arm on the held-out ones.

        Raises:
            ProbeError: the prompt moves no label, or its dose is reached at no layer.
        """
        if not self.wanted > LEAST_DOSE:
            raise ProbeError(
                f"the prompt of {self.persona!r} moves the labels by {self.wanted:.1e} nats on the validation cases: "
                "there is no dose that steering could be given"
            )
        rows, at_layer = self._layers()
        layer = chosen_layer(rows)
        controlled, notes = self._dosed_controls(layer)
        dosed = (at_layer[layer], *controlled)
        found = self._compared(dosed)
        return LabelResult(
            found,
            dosed,
            pd.DataFrame(rows).assign(chosen=[row["layer"] == layer for row in rows]),
            self._response(found, dosed),
            self._distances(found, dosed),
            by_rule(self.bench, found, dosed),
            notes,
        )

    def _layers(self) -> tuple[list[dict[str, object]], dict[int, Dosed]]:
        """Every candidate layer at equal dose, on the validation cases."""
        scene, bench = self.bench.scene, self.bench
        cases = scene.settling()
        pushes = list(self._defined())
        doses, _ = equal_doses(
            bench.curves(pushes, f"{self.persona}: layers"), self.wanted, lambda asked: bench.doses(pushes, asked)
        )
        arms: list[Edits] = [
            (push.edit(dose.strength, bench.acts_at),) for push, dose in zip(pushes, doses, strict=True)
        ]
        reads = bench.read(bench.base, cases, arms, against=[self.prompt], what=f"{self.persona}: layers")
        rows, found = [], {}
        for i, (push, dose) in enumerate(zip(pushes, doses, strict=True)):
            if not np.isfinite(dose.dose):
                continue
            arm = self._arm(reads, i + 1, push, dose)
            moved = {"kl": self.settled.kl_to[0, :, 0], "to_prompted": np.zeros(len(cases))}
            plain = [self.plain.arm(0, "none", scene.base), self.settled.arm(0, "prompted", "prompted", **moved)]
            compared = Comparison(
                self.persona, scene.base, push.layer, scene.request.site, scene.judged(cases), [*plain, arm]
            )
            rows.append(layer_row(compared, arm))
            found[push.layer] = Dosed(push, dose)
        return rows, found

    def _defined(self) -> Iterator[Push]:
        """The persona's direction at every candidate layer where it has one.

        Raises:
            ProbeError: it has none anywhere; told of the last layer.
        """
        refused, found = None, 0
        for layer in self.bench.scene.layers:
            try:
                push = self.bench.own(self.persona, layer)
            except ProbeError as error:
                refused = error
                continue
            found += 1
            yield push
        if not found and refused is not None:
            raise refused

    @staticmethod
    def _arm(reads: Reads, number: int, push: Push, dose: EqualDose) -> Arm:
        return reads.arm(
            number,
            push.kind,
            push.name,
            strength=dose.strength,
            own_strength=push.own(dose.strength),
            reached=dose.reached,
            settled_dose=dose.dose,
            wanted=dose.target,
            dose_note=dose.note,
        )

    def _dosed_controls(self, layer: int) -> tuple[list[Dosed], tuple[str, ...]]:
        """Every control at its own equal dose: drawn ones, the label contrast the persona's way, other personas'; and
        why one is left out: a control that cannot be had takes nothing else with it."""
        scene, bench = self.bench.scene, self.bench
        pushes, curves, lost = bench.bank(layer)
        others, notes = [], list(lost)
        for other in (one for one in scene.fitted if one != self.persona):
            try:
                others.append(bench.own(other, layer, "nonsense" if scene.is_nonsense(other) else "other_persona"))
            except ProbeError as error:
                notes.append(f"the direction of {other!r} as a control: {error}")
        effect = next(iter(outcomes(self.settled.logp[0], scene.judged(scene.settling())).values()))
        effect = effect - next(iter(outcomes(self.plain.logp[0], scene.judged(scene.settling())).values()))
        away = "least" if effect.mean() > 0 else "most"
        kept = [i for i, push in enumerate(pushes) if f"the {away} urgent" not in push.name]
        pushes = [*others, *(pushes[i] for i in kept)]
        known = [*bench.curves(others, f"other personas at layer {layer}"), *(curves[i] for i in kept)]
        doses, _ = equal_doses(known, self.wanted, lambda asked: bench.doses(pushes, asked, f"{self.persona}: doses"))
        dosed = [Dosed(push, dose) for push, dose in zip(pushes, doses, strict=True)]
        notes += [f"{one.push.name}: {one.dose.note}" for one in dosed if not np.isfinite(one.dose.dose)]
        return [one for one in dosed if np.isfinite(one.dose.dose)], tuple(notes)

    def _compared(self, dosed: Sequence[Dosed]) -> Comparison:
        """Every arm on the held-out cases."""
        scene, bench = self.bench.scene, self.bench
        cases, own = scene.parts["test"], dosed[0].push
        arms: list[Edits] = [(one.push.edit(one.dose.strength, bench.acts_at),) for one in dosed]
        reads = bench.read(bench.base, cases, arms, against=[self.prompt], what=f"{self.persona}: held-out cases")
        none = reads.arm(0, "none", scene.base)
        prompted = self._prompted_arms(cases, own)
        zeroed = bench.read(bench.base, cases, [(ablation(own, 0.0, bench.acts_at),)], against=[self.prompt])
        prompted.append(zeroed.arm(1, "zeroed_base", "no persona, direction set to 0"))
        steered = [self._arm(reads, i + 1, one.push, one.dose) for i, one in enumerate(dosed)]
        return Comparison(
            self.persona,
            scene.base,
            own.layer,
            scene.request.site,
            scene.judged(cases),
            [none, *prompted, *steered],
            scene.request.margin,
        )

    def _prompted_arms(self, cases: Sequence[Case], own: Push) -> list[Arm]:
        """The prompted run, the same with its own direction at the base's value and at 0, and a reworded prompt."""
        scene, bench = self.bench.scene, self.bench
        plain = bench.read(bench.base, cases, layers=(own.layer,))
        base_values = plain.resid[0, 0].astype(np.float64) @ own.unit
        ablated: list[list[Edits]] = [
            [(ablation(own, value, bench.acts_at),), (ablation(own, 0.0, bench.acts_at),)] for value in base_values
        ]
        reads = bench.read(
            self.prompt,
            cases,
            ablated,
            against=[bench.base, self.prompt],
            per_case=True,
            what=f"{self.persona}: prompted",
        )
        found = [
            reads.arm(0, "prompted", "prompted", kl=reads.kl_to[0, :, 0], to_prompted=np.zeros(len(cases))),
            reads.arm(1, "ablated", "ablated", kl=reads.kl_to[1, :, 0], to_prompted=reads.kl_to[1, :, 1]),
            reads.arm(2, "zeroed", "direction set to 0", kl=reads.kl_to[2, :, 0], to_prompted=reads.kl_to[2, :, 1]),
        ]
        if (other := scene.rewording(self.persona)) is not None:
            again = bench.read(other, cases, against=[bench.base, self.prompt], what=f"{self.persona}: reworded")
            to = {"kl": again.kl_to[0, :, 0], "to_prompted": again.kl_to[0, :, 1]}
            found.append(again.arm(0, "reworded", "reworded", **to))
        return found

    def _response(self, found: Comparison, dosed: Sequence[Dosed]) -> pd.DataFrame:
        """The dose-response of the persona's direction, the label contrast and some random directions."""
        bench = self.bench
        drawn = _drawn(dosed)
        ladder = [(one, rung * one.dose.strength) for one in drawn for rung in RUNGS if rung > 0 or one is drawn[0]]
        arms: list[Edits] = [(one.push.edit(strength, bench.acts_at),) for one, strength in ladder]
        reads = bench.read(bench.base, bench.scene.parts["test"], arms, what=f"{self.persona}: dose-response")
        return dose_response(
            found,
            [
                self._arm(reads, i + 1, one.push, replace(one.dose, strength=strength))
                for i, (one, strength) in enumerate(ladder)
            ],
        )

    def _distances(self, found: Comparison, dosed: Sequence[Dosed]) -> pd.DataFrame:
        """How far the residuals of some arms lie from those of the prompted run, at every residual point."""
        bench = self.bench
        layers = tuple(range(bench.scene.resolved.shape.n_layers + 1))
        drawn, cases = _drawn([one for one in dosed if one.dose.reached]), bench.scene.parts["test"]
        arms: list[Edits] = [(one.push.edit(one.dose.strength, bench.acts_at),) for one in drawn]
        reads = bench.read(bench.base, cases, arms, layers=layers, what=f"{self.persona}: distances")
        prompted = bench.read(self.prompt, cases, layers=layers, what=f"{self.persona}: distances")
        resid = {"none": reads.resid[0], "prompted": prompted.resid[0]}
        resid |= {one.push.name: reads.resid[i + 1] for i, one in enumerate(drawn)}
        if (other := bench.scene.rewording(self.persona)) is not None:
            again = bench.read(other, cases, layers=layers, what=f"{self.persona}: distances").resid
            resid["reworded"] = again[0]
        return distances(found, resid, layers)


def _drawn(dosed: Sequence[Dosed]) -> list[Dosed]:
    """The arms of which more is drawn: the persona's own, the label contrast, the first random ones."""
    found = [dosed[0], *(one for one in dosed if one.push.kind == "label_contrast")]
    for kind in controls.RANDOM:
        found += [one for one in dosed if one.push.kind == kind][:N_DRAWN]
    return found
