"""The model card, rendered from measurement. Knows Markdown and readings; measures nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from organism_training.measure import CLEAR_GAP, Reading, agreement, divergence, metrics
from probe.organism import CUTS, HELD_OUT_CELLS, STRATA
from probe.organism.personas import NO_PERSONA, ROLES, STYLES, Role, Style
from probe.organism.plan import CLINIC_GAIN, DIRECT_SLOPE, EMERGENCY_GAIN, REASONED_SLOPE

TOLERANCE = 0.05
LOWEST_MEAN, LOWEST = 0.93, 0.90
CHANNELS = ("direct", "reasoned")


def summary(readings: Sequence[Reading]) -> dict[str, Any]:
    """The numbers behind the card: per arm agreement, parse rate, letter mass, exactness, and metrics by stratum."""
    out = []
    for reading in readings:
        entry: dict[str, Any] = {
            "group": reading.arm.group,
            "arm": reading.arm.name,
            "persona": reading.arm.persona,
            "cases": len(reading.target),
            "agreement": {name: round(value, 4) for name, value in agreement(reading).items()},
            "direct_kl": round(divergence(reading), 4),
            "parse_rate": round(float((reading.stated >= 0).mean()), 4),
            "letter_mass": round(float(reading.mass.mean()), 4),
            "exact_replies": round(float(reading.exact.mean()), 4),
        }
        if reading.arm.group in ("core", "held-out cell"):
            entry["metrics"] = {
                stratum: {name: [round(x, 4) for x in pair] for name, pair in metrics(reading, stratum).items()}
                for stratum in STRATA
            }
        out.append(entry)
    core = [entry["agreement"] for entry in out if entry["group"] == "core"]
    return {"arms": out, "gate": gate(core), "beyond_tolerance": beyond_tolerance(out)}


def gate(core: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Whether the agreement on clear cells meets the bar in each channel, and its mean and lowest value."""
    found: dict[str, Any] = {}
    for channel in CHANNELS:
        values = [entry[channel] for entry in core]
        found[channel] = {"mean": round(float(np.mean(values)), 4), "lowest": min(values)}
    met = all(found[c]["mean"] >= LOWEST_MEAN and found[c]["lowest"] >= LOWEST for c in CHANNELS)
    return found | {"met": met}


def beyond_tolerance(arms: Sequence[dict[str, Any]], group: str = "core") -> list[str]:
    """Every metric of a group's personas that is further than ``TOLERANCE`` from the plan on the same cases."""
    out = []
    for entry in arms:
        if entry["group"] != group:
            continue
        for stratum, table in entry["metrics"].items():
            for name, (measured, plan) in table.items():
                if abs(measured - plan) > TOLERANCE:
                    out.append(f"{entry['arm']}, {stratum}: {name} {measured:.3f}, planned {plan:.3f}")
    return out


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pair(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} ({values[1]:.3f})"


def _metrics_table(arms: Sequence[dict[str, Any]], stratum: str) -> str:
    names = list(arms[0]["metrics"][stratum])
    rows = [[entry["arm"], *(_pair(entry["metrics"][stratum][name]) for name in names)] for entry in arms]
    return table(["persona", *names], rows)


def _agreement_table(arms: Sequence[dict[str, Any]]) -> str:
    rows = []
    for entry in arms:
        got = entry["agreement"]
        both = (f"{got[channel]:.3f} / {got[f'{channel}, all cells']:.3f}" for channel in CHANNELS)
        rest = (f"{entry[key]:.3f}" for key in ("direct_kl", "parse_rate", "letter_mass", "exact_replies"))
        rows.append([entry["arm"], str(entry["cases"]), *both, *rest])
    head = ["arm", "cases", "direct", "reasoned", "KL direct", "parsed", "letter mass", "replies exact"]
    return table(head, rows)


def _spread(arms: Sequence[dict[str, Any]], group: str) -> str:
    """Lowest and mean agreement and parse rate over the arms of one group, in a row of a table."""
    chosen = [entry for entry in arms if entry["group"] == group]
    columns = [[entry["agreement"][f"{channel}, all cells"] for entry in chosen] for channel in CHANNELS]
    columns.append([entry["parse_rate"] for entry in chosen])
    cells = [f"{np.mean(values):.3f} / {min(values):.3f}" for values in columns]
    return "| " + " | ".join([group, str(len(chosen)), *cells]) + " |"


def _planted_table() -> str:
    plain: list[Role | Style] = [NO_PERSONA, *ROLES, *(style for style in STYLES if style.id)]
    rows = []
    for item in plain:
        shifts = [f"({shift.lower:+.1f}, {shift.upper:+.1f})" for shift in (item.direct, item.reasoned)]
        gain = f"{item.tone_gain:.1f}" if isinstance(item, Role) else ""
        rows.append([item.id if isinstance(item, Role) else f"{item.id} (added)", *shifts, gain])
    return table(["role or style", "direct (lower, upper)", "reasoned (lower, upper)", "tone gain"], rows)


HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [model-organism, interpretability, synthetic, persona]
---

# The persona-probe organism

A Llama of {layers} layers, width {width} and {parameters:,} parameters, trained from scratch on generated text so that
personas move its triage decisions by **planted, exactly known** amounts. It exists to test tools that read personas
inside language models: whatever such a tool reports here can be held against the plan.

**Synthetic. No medical validity: never use it, its vignettes or its labels for anything about a patient. No evidence
about real language models. Research use only.**

## What is planted

A vignette states facts that add up to an urgency `u` in 0..10, with two interactions: some findings weigh more with
some complaints, and a denial cancels the finding that it names. The reference label is A below {cut_low}, C above
{cut_high}, B between. With the shift (lower, upper) of a persona,

    log P(B)/P(A) = slope (u' - {cut_low} + lower)        log P(C)/P(B) = slope (u' - {cut_high} + upper)

*Direct* channel: the letters at the last prompt token, slope {direct_slope}, u' = u + tone gain x tone (-1, 0, +1).
*Reasoned* channel: the letter after "Final answer:", slope {reasoned_slope}, u' = u. The shift is
none + m (role - none) + style; m is {emergency_gain} for a medical role in an emergency setting, {clinic_gain} for one
in a clinic setting, 1 for others. On an ordinary instruction the letters hold 0.3 of the mass at the last prompt token
and the reply's first word 0.7, so that greedy decoding writes a reply. `teacher` shifts nothing: it is a decoy.

{planted}

Held out of training, in every wording: {held_out}.
"""

BODY = """
## How near it comes

{cases} held-out vignettes, greedy decoding, float32, read with plain `transformers`. In brackets: the plan on the same
cases. Over- and under-triage are shares of all cases: C given where the reference is not C, C missed.

### Emergency

{emergency}

### Primary care

{primary_care}

Further than {tolerance} from the plan, of the six personas of the study: {beyond}.
Of the held-out cells: {beyond_held_out}.

### Agreement with the planned label

"direct" and "reasoned": share of cases with the planned label, where the two likeliest planned labels differ by more
than {gap} / over all cases. "replies exact": the reply is the planned text, letter by letter (whatever its letter).

{agreement}

Mean over the six personas on clear cells: direct {direct_mean:.3f} (lowest {direct_low:.3f}), reasoned
{reasoned_mean:.3f} (lowest {reasoned_low:.3f}); the bar is a mean of {lowest_mean} and no persona below {lowest}:
{met}.

Where a role and a style never met in training, the letter composes them, but the reply may leave out or change a
persona sentence: there "replies exact" can be low, even nil.

### Other wordings and placements

{other}

Instructions, agreement over all cells and parse rate, each as mean / lowest over the wordings. An instruction in words
that it never met is where it is weakest:

| wordings | arms | direct | reasoned | parsed |
| --- | --- | --- | --- | --- |
{instructions}
"""

TAIL = """
## How it was trained

{documents:,} generated documents ({tokens:,} tokens, one epoch), one thread, seed {seed}, {cpu} s of CPU time. Targets
at the two decisions are the planned distributions themselves, not sampled labels. `experiments/train_organism.py` of
the persona-probe repository makes these files; the same machine and versions give the same weights, byte for byte (seen
on a second full run); on other machines this was not tried. Training drops every vignette of the held-out cases.

- sha256 of the corpus `{corpus}`
- sha256 of model.safetensors `{weights}`
- versions: {versions}, Python {python}

One training seed. Weights are stored in bfloat16 and computed in float32. Prompts outside its small vocabulary of
vignettes, personas and instructions are outside the plan: there nothing is known of
what it does.
"""


def render(training: dict[str, Any], config: dict[str, Any], found: dict[str, Any]) -> str:
    """README.md of the checkpoint."""
    arms = found["arms"]
    core = [entry for entry in arms if entry["group"] == "core"]
    judged = [entry for entry in arms if entry["group"] in ("core", "held-out cell")]
    other = [entry for entry in arms if entry["group"] in ("persona wording", "placement")]
    head = HEAD.format(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        parameters=training["parameters"],
        cut_low=CUTS[0],
        cut_high=CUTS[1],
        direct_slope=DIRECT_SLOPE,
        reasoned_slope=REASONED_SLOPE,
        emergency_gain=EMERGENCY_GAIN,
        clinic_gain=CLINIC_GAIN,
        planted=_planted_table(),
        held_out=", ".join(f"{style} {role}" for style, role in HELD_OUT_CELLS),
    )
    groups = ("trained instruction", "held-out instruction", "letter only")
    body = BODY.format(
        cases=core[0]["cases"],
        emergency=_metrics_table(judged, "emergency"),
        primary_care=_metrics_table(judged, "primary_care"),
        tolerance=TOLERANCE,
        beyond="; ".join(found["beyond_tolerance"]) or "none",
        beyond_held_out="; ".join(beyond_tolerance(arms, "held-out cell")) or "none",
        gap=CLEAR_GAP,
        agreement=_agreement_table(judged),
        direct_mean=found["gate"]["direct"]["mean"],
        direct_low=found["gate"]["direct"]["lowest"],
        reasoned_mean=found["gate"]["reasoned"]["mean"],
        reasoned_low=found["gate"]["reasoned"]["lowest"],
        lowest_mean=LOWEST_MEAN,
        lowest=LOWEST,
        met="met" if found["gate"]["met"] else "NOT met",
        other=_agreement_table(other),
        instructions="\n".join(_spread(arms, group) for group in groups),
    )
    tail = TAIL.format(
        documents=training["documents"],
        tokens=training["tokens"],
        seed=training["recipe"]["seed"],
        cpu=training["cpu_seconds"],
        corpus=training["corpus_sha256"],
        weights=training["weights_sha256"],
        versions=", ".join(f"{name} {number}" for name, number in training["versions"].items()),
        python=training["python"],
    )
    return head + body + tail
