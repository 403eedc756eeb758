"""The rows of the benchmark, the model that they run through, and what each tool is to give for them.

Knows no tool: who runs the rows, and how, is in ``capture_tools``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from probe.capture import Job
from probe.prompts import LabelTokens, Prompt
from probe.values import Cell, Condition, PlannedRow

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
LETTERS = ("A", "B", "C")
LABELS = LabelTokens(LETTERS, ((1,), (2,), (3,)))
LABEL_IDS = [ids[0] for ids in LABELS.ids]


@dataclass(frozen=True)
class Row:
    """A prompt and how many tokens its answer has."""

    job: Job
    new: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.job.prompt.token_ids


@dataclass(frozen=True, eq=False)
class Got:
    """What a tool gave for a row: ``[layer, d_model]`` at the prompt's end, log-probability of each label, tokens."""

    resid: Tensor
    logp: Tensor
    tokens: list[int]


@dataclass(frozen=True, eq=False)
class Ran:
    seconds: float
    got: list[Got]


class Tool(Protocol):
    name: str

    def run(self, rows: Sequence[Row], batch: int) -> Ran: ...


@dataclass(frozen=True)
class Machine:
    """Where the model's folder is, on which device and in which dtype it runs, and by which clock."""

    folder: Path
    device: str = "cpu"
    dtype: str = "float32"
    clock: str = "wall"

    def model(self) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.dtype))
        return loaded.to(self.device).eval().requires_grad_(False)

    def timed(self, work: Callable[[], list[Got]]) -> Ran:
        self.wait()
        started = self.now()
        got = work()
        self.wait()
        return Ran(self.now() - started, got)

    def now(self) -> float:
        return CLOCKS[self.clock]()

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def save_model(folder: Path, sizes: Mapping[str, int], *, seed: int, device: str, dtype: str) -> None:
    """A random Llama without an end token, and a tokenizer of as many words, three of which are the letters."""
    torch.manual_seed(seed)
    config = LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    words = ["pad", *LETTERS, *(f"w{k}" for k in range(4, sizes["vocab_size"]))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="pad"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="pad").save_pretrained(folder)


def job_of(persona: str, case: str, prefix: Sequence[int], own: Sequence[int]) -> Job:
    """A prompt that is a persona's tokens and a case's; nothing is tokenised."""
    ids = (*prefix, *own)
    prompt = Prompt(f"{persona} {case}", ids, None, None, (0, len(prefix)), (len(prefix), len(ids)))
    row = PlannedRow(Cell(persona, case, Condition()), 0, prompt.prompt_sha, prompt.tokens_sha, len(ids))
    return Job(row, prompt, LABELS, ("one", "two", "three"))


def in_batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def padded(rows: Sequence[Row], machine: Machine) -> dict[str, Tensor]:
    """The rows left-padded, with their mask and positions."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (width - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {
        "input_ids": ids.to(machine.device),
        "attention_mask": mask.to(machine.device),
        "position_ids": positions.to(machine.device),
    }


def together(rows: Sequence[Row], points: Tensor, logits: Tensor, tokens: Tensor) -> list[Got]:
    """From ``[layer, batch, d_model]``, ``[batch, vocab]`` and ``[batch, token]`` to one result per row, on the CPU."""
    logp = logits.float().log_softmax(-1)[:, LABEL_IDS].cpu()
    resid = points.float().cpu()
    return [Got(resid[:, k], logp[k], tokens[k, : row.new].tolist()) for k, row in enumerate(rows)]
