"""lm-evaluation-harness' results and logged samples. Knows their form; knows no store, and needs no ``lm_eval``.

Every arm is two tasks: ``..._latent``, a multiple choice over the options' letters at the end of the prompt, and
``..._stated``, the label that the parser read in the generated answer. A row is a document.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from probe.interop.results import Evaluation, Sample, clustered_error

VERSION = 1
"""Of these tasks: raised when what they score changes."""

INVALID = "[invalid]"
"""What lm-eval's own filters put where no answer was found."""


def lm_eval_files(arms: Mapping[str, Sequence[Sample]], of: Evaluation) -> dict[PurePosixPath, str]:
    """The content of every file by its path: ``MODEL/results_<time>.json`` and ``MODEL/samples_<task>_<time>.jsonl``.

    ``acc`` and ``exact_match`` are means over rows; their errors are clustered by case, which is lm-eval's own where
    each case has one row.
    """
    tasks: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for arm, samples in arms.items():
        name = re.sub(r"\W", "_", f"{of.study}_{arm}")
        for task, metric, logged in (
            (f"{name}_latent", "acc", [found for one in enumerate(samples) if (found := _choice(*one, of))]),
            (f"{name}_stated", "exact_match", [found for one in enumerate(samples) if (found := _text(*one, of))]),
        ):
            if task in tasks:
                task = f"{task}_{sum(known.startswith(task) for known in tasks) + 1}"
            if logged:
                tasks[task] = (metric, logged)
    folder = PurePosixPath(re.sub(r"[\"<>:/|\\?*\[\]]+", "__", of.model))
    stamp = datetime.fromisoformat(of.started).strftime("%Y-%m-%dT%H-%M-%S.%f")
    files = {folder / f"results_{stamp}.json": json.dumps(_results(tasks, of), indent=2, ensure_ascii=False)}
    for task, (_, logged) in tasks.items():
        lines = (json.dumps(sample, ensure_ascii=False) for sample in logged)
        files[folder / f"samples_{task}_{stamp}.jsonl"] = "".join(f"{line}\n" for line in lines)
    return files


def _results(tasks: Mapping[str, tuple[str, list[dict[str, Any]]]], of: Evaluation) -> dict[str, Any]:
    """The aggregated results, by the keys of lm-eval's own result file."""
    kinds = {"acc": "multiple_choice", "exact_match": "generate_until"}
    folder = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", of.model)
    return {
        "results": {task: _aggregate(task, metric, logged) for task, (metric, logged) in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {
            task: {"task": task, "output_type": kinds[metric], "num_fewshot": 0, "metadata": {"version": VERSION}}
            for task, (metric, _) in tasks.items()
        },
        "versions": dict.fromkeys(tasks, VERSION),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: {metric: True} for task, (metric, _) in tasks.items()},
        "n-samples": {task: {"original": len(logged), "effective": len(logged)} for task, (_, logged) in tasks.items()},
        "config": {"model": of.made_by, "model_args": {"pretrained": of.model}, **of.facts},
        "date": datetime.fromisoformat(of.started).timestamp(),
        "task_hashes": {
            task: _sha("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in logged))
            for task, (_, logged) in tasks.items()
        },
        "model_source": of.made_by,
        "model_name": of.model,
        "model_name_sanitized": folder,
    }


def _aggregate(task: str, metric: str, logged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [float(sample[metric]) for sample in logged]
    kind = str(logged[0]["filter"])
    error = clustered_error(values, [str(sample["doc"]["case"]) for sample in logged])
    return {
        "alias": task,
        "sample_len": len(values),
        f"{metric},{kind}": sum(values) / len(values),
        f"{metric}_stderr,{kind}": "N/A" if error is None else error,
    }


def _choice(number: int, sample: Sample, of: Evaluation) -> dict[str, Any] | None:
    """The latent read as a multiple choice, None where there is none. An argument is the option's letter in this row.

    Its log-probability sums the legal variants of the letter, where lm-eval scores one continuation.
    """
    if sample.logp is None or sample.latent is None or sample.target is None:
        return None
    greedy: Sequence[bool | None] = sample.greedy or (None,) * len(sample.logp)
    reads = [[str(logp), str(first)] for logp, first in zip(sample.logp, greedy, strict=True)]
    return {
        **_common(number, sample, of, str(of.options.index(sample.target)), sample.letters),
        "resps": [[read] for read in reads],
        "filtered_resps": reads,
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(sample.latent == sample.target),
    }


def _text(number: int, sample: Sample, of: Evaluation) -> dict[str, Any] | None:
    """The generated answer and the option that the parser read in it; None without a target."""
    if sample.target is None:
        return None
    return {
        **_common(number, sample, of, sample.target, ("",)),
        "resps": [[sample.answer]],
        "filtered_resps": [sample.stated or INVALID],
        "filter": "parser",
        "metrics": ["exact_match"],
        "exact_match": float(sample.stated == sample.target),
    }


def _common(number: int, sample: Sample, of: Evaluation, target: str, continuations: Sequence[str]) -> dict[str, Any]:
    doc = {
        "case": sample.case,
        "condition": sample.condition,
        "options": list(of.options),
        "letters": list(sample.letters),
        "target": sample.target,
        "status": sample.status,
        **sample.told,
    }
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {f"gen_args_{i}": {"arg_0": sample.prompt, "arg_1": text} for i, text in enumerate(continuations)},
        "doc_hash": _sha(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha(sample.prompt),
        "target_hash": _sha(target),
    }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
