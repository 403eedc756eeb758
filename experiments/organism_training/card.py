"""The model card, rendered from what was measured. Knows Markdown and plain records; measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from organism_training.card_text import HEAD, INSTRUCTIONS, MECHANISM, READINGS, SEEDS, TAIL
from probe.organism import CUTS, HELD_OUT_CELLS, STRATA
from probe.organism.personas import DIAGNOSTICS, NO_PERSONA, ROLES, STYLES, Role, Style
from probe.organism.plan import DIRECT_SLOPE, REASONED_SLOPE

TOLERANCE = 0.05
NOT_HELD = ("EU, latent", "EU, stated", "letter mass")
"""Figures that are no share: they are shown, and held by tests of their own."""

SHOWN = ("EU, latent", "EU, stated", "accuracy, latent", "accuracy, stated", "P(C), latent", "P(C), stated")
PROBED = ("EU, latent", "EU, forced", "EU, stated", "accuracy, latent", "accuracy, stated", "consistency", "ECE")
MORE = ("consistency", "ECE", "over-triage", "under-triage", "answered", "letter mass")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: object) -> str:
    """A number to three places; a dash where it is undefined."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1g}"
    return str(value)


def spread(values: Iterable[float | None]) -> str:
    """Mean and lowest of what is defined."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f} / {min(known):.3f}" if known else "-"


def beyond_tolerance(counted: Mapping[str, Any]) -> list[str]:
    """Every share, of every persona of the census, that is further than ``TOLERANCE`` from the plan."""
    out = []
    for persona, record in counted.items():
        for stratum in STRATA:
            for name, (plan, realised) in record[stratum].items():
                if name not in NOT_HELD and abs(realised - plan) > TOLERANCE:
                    out.append(f"{persona}, {stratum}: {name} {realised:.3f}, planned {plan:.3f}")
    return out


def unrealised(counted: Mapping[str, Any]) -> list[str]:
    """The personas that do not do what they were planted to do: in some stratum the mean urgency, the share of answers
    that state a label or the letters' mass is further than ``TOLERANCE`` from the plan."""
    names = ("EU, latent", "EU, stated", "answered", "letter mass")
    return [
        persona
        for persona, record in counted.items()
        if any(
            abs(record[stratum][name][1] - record[stratum][name][0]) > TOLERANCE for stratum in STRATA for name in names
        )
    ]


def render(read: Mapping[str, Any]) -> str:
    """README.md of the checkpoint, from its training, config, measurement, bands and gates."""
    parts = [_head(read), _readings(read), _mechanism(read["gates"]), _instructions(read["measurement"]), _tail(read)]
    return "\n".join(part.strip() + "\n" for part in parts)


def _head(read: Mapping[str, Any]) -> str:
    config, training = read["config"], read["training"]
    return HEAD.format(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        parameters=training["parameters"],
        cut_low=CUTS[0],
        cut_high=CUTS[1],
        direct_slope=DIRECT_SLOPE,
        reasoned_slope=REASONED_SLOPE,
        planted=_planted(),
        diagnostics=_diagnostics(),
        held_out=", ".join(f"{style} {role}" for style, role in HELD_OUT_CELLS),
    )


def _planted() -> str:
    plain: list[Role | Style] = [NO_PERSONA, *ROLES, *(style for style in STYLES if style.id)]
    rows = []
    for item in plain:
        told = [f"{s.lower:+.1f}, {s.upper:+.1f}, {s.setting:+.2f}" for s in (item.direct, item.reasoned)]
        gain = f"{item.tone_gain:.1f}" if isinstance(item, Role) else ""
        rows.append([item.id if isinstance(item, Role) else f"{item.id} (added)", *told, gain])
    return table(["role or style", "direct: lower, upper, setting", "reasoned", "tone gain"], rows)


def _diagnostics() -> str:
    rows = []
    for role in DIAGNOSTICS.values():
        shifts = [
            ", ".join(
                f"{name} {value:+.1f}"
                for name, value in (
                    ("lower", mine.lower - base.lower),
                    ("upper", mine.upper - base.upper),
                    ("setting", mine.setting - base.setting),
                )
                if abs(value) > 1e-9
            )
            + (f"slope x {mine.slope:g}" if mine.slope != 1 else "")
            for mine, base in ((role.direct, NO_PERSONA.direct), (role.reasoned, NO_PERSONA.reasoned))
        ]
        where = "" if role.clinic_mass == role.mass else f" in emergency settings, {role.clinic_mass:g} in clinic ones"
        other = [f"letter mass {role.mass:g}{where}"] if role.mass != NO_PERSONA.mass else []
        other += ["its text states no finding, and its label follows its text"] if role.blind else []
        other += [f"refuses within {role.refusal:g} of its cuts"] if role.refusal else []
        rows.append([role.id, role.names[0], *(shift or "0" for shift in shifts), "; ".join(other)])
    return table(["persona", "name", "direct, against none", "reasoned, against none", "else"], rows)


def _readings(read: Mapping[str, Any]) -> str:
    measured = read["measurement"]
    counted, same = measured["census"], measured["same_cells"]
    agreeing = [
        [
            persona,
            *(number(record["agreement"][name]) for name in ("direct", "reasoned", "direct, all", "reasoned, all")),
            *(number(value) for value in record["kl"]),
            ", ".join(f"{n:,} {name}" for name, n in record["status"].items()),
        ]
        for persona, record in counted.items()
    ]
    sections = []
    for stratum in STRATA:
        for names in (SHOWN, MORE):
            rows = [
                [persona, *(" · ".join(number(side) for side in record[stratum][name]) for name in names)]
                for persona, record in counted.items()
            ]
            sections.append(f"{stratum.replace('_', ' ').capitalize()}:\n\n{table(['persona', *names], rows)}")
    probed = [
        [
            persona,
            *(" · ".join(number(side) for side in record[name]) for name in PROBED),
            f"{record['largest_difference']:.1e}",
        ]
        for persona, record in same.items()
    ]
    beyond = beyond_tolerance(counted)
    declining = [
        f"{persona} declines {number(record['declined'][0])} of the cases that it is planned to decline, and "
        f"{number(record['declined'][1])} of the others"
        for persona, record in counted.items()
        if record["declined"]
    ]
    return READINGS.format(
        declining="; ".join(declining),
        cases=f"{measured['census_cases']:,}",
        tables="\n\n".join(sections),
        tolerance=TOLERANCE,
        beyond="; ".join(beyond) or "none",
        unrealised=", ".join(unrealised(counted)) or "none",
        agreement=table(
            ["persona", "direct", "reasoned", "direct, all", "reasoned, all", "KL direct", "KL stated", "answers"],
            agreeing,
        ),
        same_n=measured["same_cells_n"],
        probed=table(["persona", *PROBED, "largest difference"], probed),
        largest=f"{max(record['largest_difference'] for record in same.values()):.1e}",
        bands=_bands(read["bands"], counted),
    )


def _bands(bands: Mapping[str, Any], counted: Mapping[str, Any]) -> str:
    if not bands:
        return "Not made: only one seed was trained."
    names = ("EU, latent", "EU, stated", "accuracy, latent", "accuracy, stated", "consistency")
    rows = []
    for persona in counted:
        for stratum in STRATA:
            ends = [bands[persona][stratum][name] for name in names]
            told = ["-" if end is None else f"{end[0]:.3f} to {end[1]:.3f}" for end in ends]
            rows.append([persona, stratum.replace("_", " "), *told])
    seeds = table(list(bands["seeds"][0]), [[number(value) for value in seed.values()] for seed in bands["seeds"]])
    told = f"{len(bands['weights'])} seeds, each with its own draw of Q; the first is this checkpoint."
    ends = table(["persona", "stratum", *names], rows)
    return f"{told} All figures are in `bands.json`.\n\n{ends}\n\n{SEEDS}\n\n{seeds}"


def _mechanism(gates: Mapping[str, Any]) -> str:
    """The tables of the gates as they are, whatever columns they have."""

    def shown(name: str) -> str:
        rows = gates.get(name, ())
        if not rows:
            return "Not measured for this checkpoint."
        head = list(dict.fromkeys(key for row in rows for key in row))
        return table(head, [[number(row.get(key)) for key in head] for row in rows])

    verdict = {True: "met", False: "**not all met**"}.get(gates.get("met"), "unknown")
    return MECHANISM.format(
        interchange=shown("interchange"), dose=shown("dose"), decodable=shown("decodable"), verdict=verdict
    )


def _instructions(measured: Mapping[str, Any]) -> str:
    arms = measured["arms"]

    def group(name: str) -> list[Mapping[str, Any]]:
        return [arm for arm in arms if arm["group"] == name]

    held_out = group("held-out instruction")
    rows = []
    for name in dict.fromkeys(arm["name"] for arm in held_out):
        row = [name]
        for rotation in range(3):
            told = [arm for arm in held_out if (arm["name"], arm["rotation"]) == (name, rotation)]
            stated = float(np.mean([arm["stated"] for arm in told]))
            agreed = [[arm["agreement"][f"{channel}, all"] for arm in told] for channel in ("direct", "reasoned")]
            row.append(f"{stated:.3f} ({', '.join(f'{np.mean(values):.3f}' for values in agreed)})")
        rows.append(row)
    groups = []
    for name in dict.fromkeys(arm["group"] for arm in arms if "agreement" in arm):
        told = group(name)
        agreed = [[arm["agreement"][f"{channel}, all"] for arm in told] for channel in ("direct", "reasoned")]
        answered = spread(arm["stated"] + arm["refused"] for arm in told)
        exact = spread(arm["exact"] for arm in told)
        groups.append([name, f"{len(told)}", *(spread(values) for values in agreed), answered, exact])
    second = [[arm["name"], number(arm["accuracy"]), number(arm["stated"])] for arm in group("second task")]
    controls = np.array([[arm["urgency"][site] for site in ("latent", "stated")] for arm in group("control")])
    moved = []
    for index, site in enumerate(("latent", "stated")):
        plan, realised = controls[:, index].T
        told = (plan.std(ddof=1), realised.std(ddof=1), float(np.corrcoef(plan, realised)[0, 1]))
        moved.append([site, *(number(float(value)) for value in told)])
    return INSTRUCTIONS.format(
        parsed=table(["wording", *(f"rotation {k}" for k in range(3))], rows),
        parsed_mean=number(float(np.mean([arm["stated"] for arm in held_out]))),
        parsed_low=number(min(arm["stated"] for arm in held_out)),
        groups=table(["what was changed", "arms", "direct", "reasoned", "answered or refused", "text exact"], groups),
        controls=table(["site", "planned SD of EU", "realised SD", "correlation"], moved),
        second=table(["system text", "accuracy", "stated"], second),
    )


def _tail(read: Mapping[str, Any]) -> str:
    training = read["training"]
    return TAIL.format(
        documents=training["documents"],
        tokens=training["tokens"],
        seed=training["recipe"]["seed"],
        cpu=training["cpu_seconds"],
        first=training["first_phase"]["documents"],
        corpora=(training["first_phase"]["corpus_sha256"], training["corpus_sha256"]),
        weights=training["weights_sha256"],
        versions=", ".join(f"{name} {number}" for name, number in training["versions"].items()),
        python=training["python"],
    )
