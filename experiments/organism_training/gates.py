"""Whether the planted mechanism is there: swaps, doses and the decoy on held-out cases. Knows lean model and plan.

All readings are teacher-forced on the planned reply, and beside each stands the plan of the same case. EU is the
expected urgency P(B) + 2 P(C) of the options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from organism_training import interchange
from organism_training.corpus import decisions, render, user_turn
from organism_training.interchange import Channel, Decisions
from organism_training.lean import LeanLlama, Run
from organism_training.tokens import LETTERS
from probe.organism import HELD_OUT_INSTRUCTIONS, facts_of, held_out_cases, parse_persona, planned_reply, triage_task
from probe.organism.personas import DIAGNOSTICS
from probe.organism.plan import spoken
from probe.values import Case

SHIFTING = ("latent-only", "decoding-only", "both equal", "opposed", "heterogeneous", "gain-only")
PERSONAS: dict[str, str | None] = {
    "none": None,
    "helpful assistant": "You are a helpful assistant.",
    "ED physician": "You are an ED physician.",
    "ED nurse": "You are an ED nurse.",
    "bold ED physician": "You are a bold ED physician.",
    "cautious ED physician": "You are a cautious ED physician.",
} | {name: f"You are {DIAGNOSTICS[name].names[0]}." for name in SHIFTING}
"""The personas between which is swapped: those of the study, and the diagnostic ones that shift labels."""

PAIRS = tuple(
    (base, source)
    for base in PERSONAS
    for source in PERSONAS
    if base != source and ((base not in SHIFTING and source not in SHIFTING) or "none" in (base, source))
)
"""The ordered pairs (base, source): all of the study's personas, and no persona with each diagnostic one."""

CHANGED, SHARE, INERT, DOSE = 0.03, 0.95, 0.03, 0.03
"""The bars: accuracy lost on changed cells, share of the EU shift moved by Q, by the complement, error of a dose."""

SHIFTED = 0.1
"""Persona pairs count towards the EU shares if the model's own mean shift between them is at least this."""


@dataclass(frozen=True)
class Setting:
    """One instruction wording with one assignment of letters to options."""

    name: str
    instruction: str
    rotation: int


def settings() -> list[Setting]:
    """The standard instruction under every rotation, a trained rewording and held-out ones."""
    trained = triage_task().instructions
    return [
        *(Setting(f"standard, rotation {k}", trained[0], k) for k in range(3)),
        Setting("trained rewording, rotation 2", trained[5], 2),
        Setting("held-out wording 2", HELD_OUT_INSTRUCTIONS[1], 0),
        Setting("held-out wording 7, rotation 1", HELD_OUT_INSTRUCTIONS[6], 1),
    ]


@dataclass(frozen=True, eq=False)
class Pass:
    """One persona on all cases: the run, and in one channel the decisions, residuals at the point [case d_model], the
    model's own policy and the planned one [case 3], letters in order."""

    run: Run
    at: Decisions
    h: Tensor
    own: Tensor
    plan: Tensor


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with its letters, on one setting and one set of cases."""

    model: LeanLlama
    tokenizer: PreTrainedTokenizerBase
    setting: Setting
    cases: tuple[Case, ...]

    def policy(self, final: Tensor) -> Tensor:
        """P(A), P(B), P(C) [... 3] of final residuals."""
        letters = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(LETTERS)))
        return torch.softmax(self.model.logits(final)[..., letters], -1)

    def resumed(self, of: Pass, h: Tensor) -> Tensor:
        """The policy [run case 3] if the residuals at the point are ``h`` [run case d_model]."""
        return self.policy(self.model.resume(h, of.run, of.at.rows, of.at.at))

    def urgency(self, policy: Tensor) -> float:
        """Mean EU of a policy over letters."""
        worth = torch.tensor([(0.0, 1.0, 2.0)[(k - self.setting.rotation) % 3] for k in range(3)])
        return float((policy @ worth).mean())

    def passes(self, text: str | None, channels: tuple[Channel, Channel]) -> tuple[Pass, Pass]:
        """One persona's run, read in both channels."""
        persona = parse_persona(text)
        assert persona is not None
        rows: list[list[int]] = []
        entries: tuple[list[Any], list[Any]] = ([], [])
        for row, case in enumerate(self.cases):
            facts = facts_of(case)
            assert facts is not None
            prompt = render(text, user_turn(triage_task(), self.setting.instruction, case.input, self.setting.rotation))
            ids = [
                self.tokenizer(t, add_special_tokens=False).input_ids
                for t in (prompt, planned_reply(persona, facts, "A"))
            ]
            rows.append([*ids[0], *ids[1]])
            ends = len(ids[0]) - 1, len(rows[-1]) - 2
            found = decisions(persona, facts, spoken(persona, facts), self.setting.rotation, fixed=False)
            for entry, at, decision in zip(entries, ends, found, strict=True):
                entry.append((row, at, decision, 1.0, -1, persona.role.medical))
        padded = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
        for row, ids in enumerate(rows):
            padded[row, : len(ids)] = torch.tensor(ids)
        run = self.model(padded)
        return tuple(self._read(run, interchange.collate(e), c) for e, c in zip(entries, channels, strict=True))  # type: ignore[return-value]  # two channels

    def _read(self, run: Run, at: Decisions, channel: Channel) -> Pass:
        own = self.policy(run.final[at.rows, at.at])
        return Pass(run, at, run.point[at.rows, at.at], own, planned(channel, at, at.numbers))


def planned(channel: Channel, at: Decisions, numbers: Tensor) -> Tensor:
    """The planned policy [case 3] over letters of raw persona numbers, given that a letter is said."""
    letters = interchange.targets(channel, at, numbers)[:, :3]
    return letters / letters.sum(1, keepdim=True)


def hits(policy: Tensor, plan: Tensor) -> Tensor:
    """1 where the likeliest letter is the planned one [case]."""
    return (policy.argmax(-1) == plan.argmax(-1)).float()


def interchange_row(bench: Bench, channel: Channel, name: str, passes: dict[str, Pass]) -> dict[str, Any]:
    """Swaps of Q and of its complement over all ordered pairs of personas, on the cells whose planned label differs."""
    found: dict[str, list[float]] = {key: [] for key in ("ceiling", "q", "q_other", "base", "complement")}
    shifts: dict[str, list[float]] = {"own": [], "q": [], "complement": []}
    other = torch.roll(torch.arange(len(bench.cases)), 7)
    q = channel.basis
    for base, source in PAIRS:
        p, s = passes[base], passes[source]
        moved = (s.h - p.h) @ q @ q.T
        elsewhere = (s.h[other] - p.h) @ q @ q.T
        swapped, rest, distant = bench.resumed(p, torch.stack((p.h + moved, s.h - moved, p.h + elsewhere)))
        goal, far = (planned(channel, p.at, n) for n in (s.at.numbers, s.at.numbers[other]))
        differs, differs_far = (p.plan.argmax(1) != plan.argmax(1) for plan in (goal, far))
        found["ceiling"] += hits(s.own, goal)[differs].tolist()
        found["base"] += hits(p.own, p.plan)[differs].tolist()
        found["q"] += hits(swapped, goal)[differs].tolist()
        found["q_other"] += hits(distant, far)[differs_far].tolist()
        found["complement"] += hits(rest, p.plan)[differs].tolist()
        total = bench.urgency(s.own) - bench.urgency(p.own)
        if abs(total) >= SHIFTED:
            for key, policy in (("own", s.own), ("q", swapped), ("complement", rest)):
                shifts[key].append(np.sign(total) * (bench.urgency(policy) - bench.urgency(p.own)))
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    mean |= {f"share_{key}": float(np.sum(shifts[key]) / np.sum(shifts["own"])) for key in ("q", "complement")}
    met = (
        mean["q"] >= mean["ceiling"] - CHANGED
        and mean["complement"] >= mean["base"] - CHANGED
        and mean["share_q"] >= SHARE
        and abs(mean["share_complement"]) <= INERT
    )
    agreement = [float(hits(p.own, p.plan).mean()) for p in passes.values()]
    return {
        "setting": bench.setting.name,
        "channel": name,
        "agreement": round(float(np.mean(agreement)), 3),
        "lowest persona": round(min(agreement), 3),
        "changed cells": len(found["q"]),
        "unpatched": round(mean["ceiling"], 3),
        "Q swap": round(mean["q"], 3),
        "Q from another case": round(mean["q_other"], 3),
        "unpatched base": round(mean["base"], 3),
        "complement swap": round(mean["complement"], 3),
        "EU share of Q": round(mean["share_q"], 3),
        "EU share of complement": round(mean["share_complement"], 3),
        "met": "yes" if met else "no",
    }


def dose_rows(bench: Bench, channel: Channel, name: str, none: Pass) -> Iterator[dict[str, Any]]:
    """EU over a range of doses of each shift and of the tone gain, added to no persona's planted numbers."""
    for index, number in enumerate(channel.names):
        unit = {"lower": 1.0, "upper": 1.0, "setting": 0.6, "tone_gain": 0.25, "slope": 0.3}.get(number)
        if unit is None:
            continue
        errors = {}
        for dose in (-1.0, -0.5, 0.5, 1.0, 1.5, 2.0):
            numbers = none.at.numbers.clone()
            numbers[:, index] += dose * unit
            h = none.h + (channel.encode(numbers) - none.h @ channel.basis) @ channel.basis.T
            got = bench.urgency(bench.resumed(none, h[None])[0])
            errors[dose] = got - bench.urgency(planned(channel, none.at, numbers))
        worst = max(errors.values(), key=abs)
        yield {
            "setting": bench.setting.name,
            "channel": name,
            "number": number,
            "dose 1 is": unit,
            **{f"EU - plan at {dose:+.1f}": round(error, 3) for dose, error in errors.items()},
            "worst": round(worst, 3),
            "met": "yes" if abs(worst) <= DOSE else "no",
        }


def decodable_row(bench: Bench, channel: Channel, name: str, passes: dict[str, Pass]) -> dict[str, Any]:
    """Accuracy of a linear persona probe inside Q and outside it, half of the cases for each of fit and test, and what
    swapping the decoy coordinate with another persona's does to the policy."""
    half = torch.arange(len(bench.cases)) % 2 == 0
    spaces = {
        "all": lambda h: h,
        "inside Q": lambda h: h @ channel.basis,
        "outside Q": lambda h: h - h @ channel.basis @ channel.basis.T,
    }
    row: dict[str, Any] = {"setting": bench.setting.name, "channel": name}
    for space, part in spaces.items():
        x, y = ([np.concatenate([part(p.h[m]).numpy() for p in passes.values()]) for m in (half, ~half)],
                [np.repeat(np.arange(len(passes)), int(m.sum())) for m in (half, ~half)])  # fmt: skip
        scale = x[0].std(axis=0).mean()
        probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x[0] / scale, y[0])
        row[f"persona read, {space}"] = round(float(probe.score(x[1] / scale, y[1])), 3)
    moved = []
    for base, source in PAIRS:
        p, s = passes[base], passes[source]
        h = p.h + ((s.h - p.h) @ channel.decoy)[:, None] * channel.decoy
        moved.append(bench.urgency(bench.resumed(p, h[None])[0]) - bench.urgency(p.own))
    return row | {
        "chance": round(1 / len(passes), 3),
        "largest EU moved by the decoy": round(float(np.abs(moved).max()), 3),
    }


@torch.inference_mode()
def gates(
    model: LeanLlama, tokenizer: PreTrainedTokenizerBase, *, seed: int, n_per_stratum: int = 60
) -> dict[str, Any]:
    """Every table, and ``met``: whether every row of the swaps and the doses meets its bars."""
    planted = interchange.channels(model.embedding.embedding_dim, seed)
    cases = tuple(case for case in held_out_cases() if int(case.id[-4:]) <= n_per_stratum)
    found: dict[str, Any] = {"interchange": [], "dose": [], "decodable": []}
    for setting in settings():
        bench = Bench(model, tokenizer, setting, cases)
        both = {name: bench.passes(text, planted) for name, text in PERSONAS.items()}
        for index, (name, channel) in enumerate(zip(("direct", "reasoned"), planted, strict=True)):
            passes = {persona: pair[index] for persona, pair in both.items()}
            found["interchange"].append(interchange_row(bench, channel, name, passes))
            found["dose"] += dose_rows(bench, channel, name, passes["none"])
            if setting.rotation == 0 and setting is not settings()[-1] and "standard" in setting.name:
                found["decodable"].append(decodable_row(bench, channel, name, passes))
    return found | {"met": all(row["met"] == "yes" for key in ("interchange", "dose") for row in found[key])}
