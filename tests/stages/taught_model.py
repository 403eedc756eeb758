"""A tiny model taught, in seconds, to answer each prompt of a study with one text: generated answers of known form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.stages.preparation import prepare
from probe.study import Study
from tests.tiny_models import save_tiny_model

Tokens = Sequence[int] | str


def teach(folder: Path, study: Study, answers: Mapping[tuple[str, str], Tokens], steps: int = 150) -> None:
    """Train the model of a study until it answers (persona, case) with these texts, or these very tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = []
    for job in prepare(study).cells.jobs:
        text = answers[job.row.cell.persona, job.row.cell.case]
        ids = tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else list(text)
        rows.append((job.prompt.token_ids, [*ids, tokenizer.eos_token_id]))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), width), tokenizer.pad_token_id)
    targets = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(rows):
        inputs[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        targets[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    for _ in range(steps):
        loss = model(input_ids=inputs, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss.item() < 0.01:
            break
    model.save_pretrained(folder)


def new_model(folder: Path) -> Path:
    """A model to be taught."""
    return save_tiny_model(folder, "llama")
