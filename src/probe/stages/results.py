"""A store's answers, labels and scores in other tools' logs. Knows the store; the formats are interop's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from probe.interop.inspect_logs import inspect_log, inspect_name
from probe.interop.lm_eval_results import lm_eval_files
from probe.interop.results import Evaluation, Sample
from probe.stages.activations import without_content
from probe.stages.analysis import study_of
from probe.stages.targets import open_target
from probe.stages.terminal import say
from probe.store import Store, View
from probe.store.exports import fresh
from probe.store.runs import utc_now
from probe.store.tables import top_ids_at, variants_at
from probe.values import ProbeError
from probe.values.nearest import nearest

PLAIN = ("persona", "role", "style", "stratum", "family", "category", "intervention")
CONDITION = ("wording", "instruction", "rotation", "placement", "prefix", "seed")
READS = ("letter", "letter_first", "margin", "label_mass", "entropy", "stated_label_mass", "row_id")
"""Columns of the table that go along with each sample, where the store has them."""

Files = Callable[[Mapping[str, Sequence[Sample]], Evaluation], Mapping[str, str]]


def export_results(
    target: str | Path,
    to: str,
    out: Path,
    *,
    personas: Sequence[str] = (),
    where: str | None = None,
    store: str | Path | None = None,
) -> list[Path]:
    """Write a store's generated rows as logs of another tool into a new folder; returns the files.

    Rows of given texts are left out, for their answers are not the model's, and cases whose input says nothing.

    Raises:
        ProbeError: there is no such format, no generated row matches, or ``out`` exists.
    """
    if to not in FORMATS:
        raise ProbeError(f"results have no format {to!r}. {nearest(to, tuple(FORMATS), 'format')}")
    name, opened = open_target(target, store=store)
    view = opened.select(persona=list(personas) or None, where=where)
    arms = samples_of(view, opened)
    if not arms:
        raise ProbeError(f"{target} holds no such generated row; rows of given texts have no answer of their own")
    files = FORMATS[to](arms, evaluation_of(opened, name))
    with fresh(out) as partial:
        for path, content in files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(content, encoding="utf-8", errors="backslashreplace")
    say(f"wrote {sum(map(len, arms.values())):,} rows of {len(arms)} arms to {out} ({len(files)} files)")
    return [out / path for path in files]


def samples_of(view: View, store: Store) -> dict[str, list[Sample]]:
    """The generated rows of a view by arm: a persona, or ``persona + intervention``, in the order of the view.

    Without the cases whose input says nothing, as in every metric.
    """
    table, texts = view.table(), view.texts()
    options = view.frame.layout.options
    logp = table[[f"logp_{option}" for option in options]].to_numpy(dtype=float)
    greedy = _greedy(view, store, len(options))
    letters = tuple(store.manifest["labels"].get("letters") or options)
    found: dict[str, list[Sample]] = {}
    empty = without_content(store)
    for at, line in enumerate(table.to_dict("records")):
        row = view.rows[at]
        condition = row.planned.cell.condition
        if condition.given or line["case"] in empty:
            continue
        told = _told(line, (*PLAIN, *CONDITION, *READS))
        told["case_text"], told["persona_text"] = _text(row.case), _wording(row.persona, condition.wording)
        prompt = texts["prompt"].iloc[at]
        sample = Sample(
            case=str(line["case"]),
            condition=str(line["condition"]),
            prompt=_text(row.case) if prompt is None else str(prompt),
            letters=tuple(letters[(k + condition.rotation) % len(letters)] for k in range(len(options))),
            target=_name(line["target"]),
            answer=str(texts["gen_text"].iloc[at]),
            status=str(line["status"]),
            stated=_name(line["y_gen"]),
            latent=_name(line["y_latent"]),
            logp=None if np.isnan(logp[at]).any() else tuple(logp[at].tolist()),
            greedy=greedy[at],
            stop=str((row.located.entry.get("extra") or {}).get("stop", "")),
            n_prompt=int(line["n_prompt"]),
            n_gen=int(line["n_gen"]),
            told=told,
        )
        steered = str(line["intervention"] or "")
        found.setdefault(f"{line['persona']} + {steered}" if steered else str(line["persona"]), []).append(sample)
    return found


def evaluation_of(store: Store, name: str) -> Evaluation:
    """What all rows of a store share."""
    labels, model, runs = store.manifest["labels"], store.manifest["model"], store.runs()
    started = str(runs[0].get("started") or utc_now()) if runs else utc_now()
    ends = [str(run["ended"]) for run in runs if run.get("ended")]
    options = tuple(labels["options"])
    facts = {
        "study": str(study_of(store).get("name", name)),
        "model_revision": str(model.get("revision") or ""),
        "model_weights_sha256": str(model.get("weights_sha256", "")),
        "store_identity_sha256": store.layout.identity,
        "plan_sha256": store.plan.hash,
        "high_risk": labels.get("high_risk"),
    }
    return Evaluation(
        study=name,
        model=str(model["id"]),
        options=options,
        texts=tuple(labels.get("texts") or options),
        started=started,
        ended=ends[-1] if ends else started,
        made_by=f"persona-probe {version('persona-probe')}",
        facts=facts,
    )


def _greedy(view: View, store: Store, n_options: int) -> list[tuple[bool, ...] | None]:
    """Of each option whether the most probable token at the end of the prompt stands for it, None where not known."""
    unknown: list[tuple[bool, ...] | None] = [None] * len(view)
    if store.manifest["labels"].get("score") == "continuation":
        return unknown  # a label of several tokens is not told by the first
    top = top_ids_at(view.locations, "prompt_end")
    variants = variants_at(view.locations, "prompt_end", n_options).ids
    hits = (variants == top[:, None, None]).any(axis=2)
    known = (top >= 0) & (variants >= 0).any(axis=(1, 2))
    return [tuple(row.tolist()) if is_known else None for row, is_known in zip(hits, known, strict=True)]


def _told(line: Mapping[Any, Any], names: Sequence[str]) -> dict[str, str | int | float | bool | None]:
    """Columns as plain JSON values; NaN and infinities, which JSON lacks, are None."""
    found: dict[str, str | int | float | bool | None] = {}
    for name in names:
        if name in line:
            value = line[name].item() if isinstance(line[name], np.generic) else line[name]
            found[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return found


def _name(value: Any) -> str | None:
    return None if value is None or value != value else str(value)


def _text(case: Mapping[str, Any]) -> str:
    return str(case.get("text", ""))


def _wording(persona: Mapping[str, Any], number: int) -> str:
    wordings = persona.get("wordings") or ()
    return str(wordings[number] or "") if number < len(wordings) else ""


def _inspect(arms: Mapping[str, Sequence[Sample]], of: Evaluation) -> Mapping[str, str]:
    logs = [inspect_log(arm, samples, of) for arm, samples in arms.items()]
    return {inspect_name(log): json.dumps(log, ensure_ascii=False, allow_nan=False, indent=1) for log in logs}


def _lm_eval(arms: Mapping[str, Sequence[Sample]], of: Evaluation) -> Mapping[str, str]:
    return {str(path): content for path, content in lm_eval_files(arms, of).items()}


FORMATS: Mapping[str, Files] = {"inspect": _inspect, "lm-eval": _lm_eval}
"""Formats of results by the names that ``--to`` takes."""
