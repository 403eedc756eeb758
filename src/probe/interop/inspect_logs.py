"""Inspect's eval logs (schema version 2). Knows their form; knows no store, and needs no ``inspect_ai``.

One log is one arm. A case is a sample, and its conditions (rotation, wording, seed, ...) are epochs, which Inspect
averages within a sample before anything else: the case stays the unit, as it is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probe.interop.results import Evaluation, Sample
from probe.values import sha256_of

_STOPS = {"end": "stop", "length": "max_tokens", "context": "model_length"}
_VALUES = {"C": 1.0, "I": 0.0, "N": 0.0}
"""Inspect's letters for correct, incorrect and no answer, and the numbers that it takes them for."""

SCORERS = ("stated", "latent", "agreement")
"""``stated``: the answer's label is the target. ``latent``: so is the most probable option at the end of the prompt.
``agreement``: the two labels are the same."""


def inspect_log(arm: str, samples: Sequence[Sample], of: Evaluation) -> dict[str, Any]:
    """The log of one arm as plain JSON values: metadata, each sample with its scores, and their means over cases.

    A sample's input is the very text that was fed. Means and errors are Inspect's own ``accuracy`` and ``stderr``.
    """
    conditions = list(dict.fromkeys(sample.condition for sample in samples))
    cases = list(dict.fromkeys(sample.case for sample in samples))
    identity = sha256_of([of.study, of.model, arm, of.started, [f"{one.case}/{one.condition}" for one in samples]])
    logged = [_sample(one, 1 + conditions.index(one.condition), of) for one in samples]
    means = {name: found for name in SCORERS if (found := _means(logged, name))}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": identity[:22],
            "run_id": sha256_of([of.study, of.model, of.started])[:22],
            "task_id": identity[22:44],
            "created": of.started,
            "task": f"{of.study}/{arm}",
            "task_args": {"persona": arm},
            "dataset": {"name": of.study, "samples": len(cases), "sample_ids": cases, "shuffled": False},
            "model": of.model,
            "config": {"epochs": len(conditions), "epochs_reducer": ["mean"]},
            "packages": {"persona-probe": of.made_by.removeprefix("persona-probe ")},
            "metadata": {**of.facts, "epochs_are": conditions},
        },
        "plan": {"name": "persona-probe", "steps": []},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [_score(name, found, len(cases)) for name, found in means.items()],
        },
        "stats": {"started_at": of.started, "completed_at": of.ended},
        "samples": logged,
        "reductions": [
            {
                "scorer": name,
                "reducer": "mean",
                "samples": [{"sample_id": case, "value": value} for case, value in found.items()],
            }
            for name, found in means.items()
        ],
    }


def inspect_name(log: Mapping[str, Any]) -> str:
    """The file name that Inspect lists a log under: time, task and id."""
    told = log["eval"]
    stamp = str(told["created"]).replace(":", "-")
    task = re.sub(r"[^\w.-]+|_", "-", str(told["task"]))
    return f"{stamp}_{task}_{told['task_id']}.json"


def _sample(sample: Sample, epoch: int, of: Evaluation) -> dict[str, Any]:
    message = {"role": "assistant", "content": sample.answer}
    usage = {"input_tokens": sample.n_prompt, "output_tokens": sample.n_gen}
    known = {of.model: {**usage, "total_tokens": sum(usage.values())}} if min(usage.values()) >= 0 else {}
    return {
        "id": sample.case,
        "epoch": epoch,
        "input": sample.prompt,
        "choices": list(of.texts),
        "target": sample.target or "",
        "messages": [{"role": "user", "content": sample.prompt}, message],
        "output": {
            "model": of.model,
            "choices": [{"message": message, "stop_reason": _STOPS.get(sample.stop, "unknown")}],
            "completion": sample.answer,
        },
        "scores": _scores(sample, of),
        "metadata": {**sample.told, "condition": sample.condition},
        "model_usage": known,
    }


def _scores(sample: Sample, of: Evaluation) -> dict[str, Any]:
    """What each scorer says of a sample; one that has nothing to compare says nothing."""
    found: dict[str, Any] = {}
    if sample.target is not None:
        found["stated"] = {
            "value": _letter(sample.stated, sample.target),
            "answer": sample.stated,
            "explanation": f"answer {sample.status}",
            "metadata": {"status": sample.status},
        }
    reads = dict(zip(of.options, sample.logp, strict=True)) if sample.logp is not None else {}
    if sample.target is not None and sample.latent is not None:
        found["latent"] = {
            "value": _letter(sample.latent, sample.target),
            "answer": sample.latent,
            "explanation": "most probable option at the end of the prompt",
            "metadata": {"logp": reads},
        }
    if sample.latent is not None:
        found["agreement"] = {
            "value": _letter(sample.stated, sample.latent),
            "answer": sample.stated,
            "explanation": f"the latent label is {sample.latent}",
        }
    return found


def _letter(label: str | None, wanted: str) -> str:
    return "N" if label is None else "C" if label == wanted else "I"


def _means(logged: Sequence[Mapping[str, Any]], scorer: str) -> dict[str, float]:
    """The mean score of each case over its epochs; cases without such a score are left out."""
    by_case: dict[str, list[float]] = {}
    for sample in logged:
        if scorer in sample["scores"]:
            by_case.setdefault(sample["id"], []).append(_VALUES[sample["scores"][scorer]["value"]])
    return {case: float(np.mean(values)) for case, values in by_case.items()}


def _score(name: str, means: Mapping[str, float], n_cases: int) -> dict[str, Any]:
    values = np.array(list(means.values()))
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0  # Inspect's own convention
    return {
        "name": name,
        "scorer": name,
        "reducer": "mean",
        "scored_samples": len(means),
        "unscored_samples": n_cases - len(means),
        "metrics": {
            "accuracy": {"name": "accuracy", "value": float(values.mean())},
            "stderr": {"name": "stderr", "value": error},
        },
    }
