"""Count what a checkpoint of the organism does: every persona of the census on 5,000 held-out cases, at every site.

    python experiments/organism_census.py src/probe/organism/checkpoint

Plain transformers, float32, one thread; nothing of probe.prompts, probe.models or probe.capture. About 15 minutes of
CPU; it resumes persona by persona. Writes ``census.npz`` beside the weights; the package reads it with numpy alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from organism_training.corpus import FORCED, user_turn
from organism_training.greedy import Checkpoint, Reply, greedy
from organism_training.package import sha256_of_file
from tqdm import tqdm

from probe.organism import facts_of, held_out_cases, parse_persona, plan_of, planned_reply, triage_task
from probe.organism.census import FORCED_PER_STRATUM, PER_STRATUM, PERSONAS, STATUSES, fingerprint, to_codes
from probe.organism.replies import REFUSAL
from probe.values import Case

CHUNK = 500


def guess(text: str | None, case: Case) -> str:
    """The reply that the plan would have the persona write."""
    persona, facts = parse_persona(text), facts_of(case)
    assert persona is not None
    assert facts is not None
    plan = plan_of(persona, facts)
    if plan.mass > 0.5:
        return "ABC"[int(plan.direct.argmax())]
    return REFUSAL if plan.refuses else planned_reply(persona, facts, "ABC"[int(plan.reasoned.argmax())])


def status(reply: Reply) -> str:
    """How an answer ended, by the rules of this script."""
    if reply.letter >= 0:
        return "parsed"
    if not reply.ended:
        return "truncated"
    if reply.text == REFUSAL:
        return "refused"
    return "conflicting" if reply.text.count("Final answer: ") > 1 else "unparsable"


def count(
    checkpoint: Checkpoint, text: str | None, cases: Sequence[Case], forced: Sequence[Case]
) -> dict[str, np.ndarray]:
    """One persona's columns of the census."""
    task = triage_task()
    prompts = [checkpoint.prompt(text, user_turn(task, task.instructions[0], case.input)) for case in cases]
    replies: list[Reply] = []
    for start in tqdm(range(0, len(cases), CHUNK), leave=False, disable=None):
        part = slice(start, start + CHUNK)
        replies += greedy(checkpoint, prompts[part], [guess(text, case) for case in cases[part]])
    nowhere = np.full(3, -np.inf)
    begun = {case.id: prompt + FORCED for case, prompt in zip(cases, prompts, strict=True)}
    rows = checkpoint.ids([begun[case.id] for case in forced])
    read = dict(checkpoint.following(rows, [len(row) - 1 for row in rows]))
    return {
        "prompt_end": to_codes(np.stack([reply.prompt_end for reply in replies])),
        "answer": to_codes(np.stack([nowhere if reply.answer is None else reply.answer for reply in replies])),
        "label": np.array([reply.letter for reply in replies], dtype=np.int8),
        "status": np.array([STATUSES.index(status(reply)) for reply in replies], dtype=np.uint8),
        "forced": to_codes(np.stack([read[i][0, checkpoint.letters] for i in range(len(rows))])),
    }


def main(folder: Path, per_stratum: int, out: Path, scratch: Path) -> None:
    """Every persona in its own file of ``scratch``, then all of them in one."""
    torch.set_num_threads(1)
    weights = sha256_of_file(folder / "model.safetensors")
    cases = held_out_cases(per_stratum)
    forced = [case for case in cases if int(case.id[3:]) <= FORCED_PER_STRATUM]
    checkpoint = Checkpoint.load(folder)
    scratch = scratch / f"{weights[:16]}-{fingerprint(cases)[:16]}"
    scratch.mkdir(parents=True, exist_ok=True)
    columns = []
    for persona, text in PERSONAS.items():
        done = scratch / f"{persona}.npz"
        if not done.exists():
            started = time.process_time()
            found = count(checkpoint, text, cases, forced)
            with done.with_suffix(".part").open("wb") as file:
                np.savez(file, **found)
            done.with_suffix(".part").replace(done)
            parsed = float((found["label"] >= 0).mean())
            print(f"{persona:24s} {time.process_time() - started:5.0f} s of CPU, answered {parsed:.3f}", flush=True)
        with np.load(done) as arrays:
            columns.append({name: arrays[name] for name in arrays.files})
    about = {"weights": weights, "per_stratum": per_stratum, "cases": fingerprint(cases), "personas": dict(PERSONAS)}
    table = {name: np.stack([column[name] for column in columns]) for name in columns[0]}
    np.savez_compressed(out, about=np.array(json.dumps(about)), **table)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint in Hugging Face's layout")
    parser.add_argument("--cases", type=int, default=PER_STRATUM, help="cases of each stratum")
    parser.add_argument("--out", type=Path, help="default: census.npz in the folder")
    parser.add_argument("--scratch", type=Path, default=Path("cache/census"), help="where finished personas wait")
    given = parser.parse_args()
    main(given.folder, given.cases, given.out or given.folder / "census.npz", given.scratch)
