"""The same steered prompts through each tool that a user would pick: the label distribution at the prompt's end.

A direction is added to the output of one block, at the last token of a prompt or at all tokens of its case. Others than
ours run the whole prompt for each of these edits, left-padded, as many together as they are told: edits of one block
share a batch, whatever their strengths and prompts. Every tool has a model of its own, loaded from one folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from capture_rows import LABEL_IDS, LABELS, Machine, padded
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from probe.capture import PassInput, sweep
from probe.models import find_model
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.values import Intervention


@dataclass(frozen=True)
class Steered:
    """A prompt whose tokens from ``case`` on are the case; ``everywhere`` in it is edited, or its last token."""

    ids: tuple[int, ...]
    case: int
    everywhere: bool

    @property
    def start(self) -> int:
        """The first edited token."""
        return self.case if self.everywhere else len(self.ids) - 1


@dataclass(frozen=True, eq=False)
class Round:
    """Prompts, and what is added to each of them in turn: every strength of ``directions[block]`` at every block."""

    prompts: tuple[Steered, ...]
    directions: np.ndarray
    strengths: tuple[float, ...]

    @property
    def edits(self) -> list[tuple[int, int, float]]:
        """(prompt, block, strength): strength by strength of each prompt of each block."""
        blocks, prompts = range(len(self.directions)), range(len(self.prompts))
        return [(p, b, s) for b in blocks for p in prompts for s in self.strengths]


@dataclass(frozen=True, eq=False)
class Read:
    """Log-probabilities ``[edit, label]``, and the seconds that they took."""

    logp: Tensor
    seconds: float


class Steers(Protocol):
    name: str

    def run(self, work: Round, batch: int) -> Read: ...


class Ours:
    """``probe.capture.sweep``; it gives divergences from the unedited prompt as well, and the unedited read."""

    name = "ours"

    def __init__(self, machine: Machine) -> None:
        source = find_model(str(machine.folder))
        loaded = load_backend(source, backend="hf", dtype=machine.dtype, device=machine.device, attention=None)
        assert isinstance(loaded, HFBackend)
        self._machine, self._backend = machine, loaded

    def run(self, work: Round, batch: int) -> Read:
        return timed(self._machine, lambda: self._sweep(work, batch))

    def _sweep(self, work: Round, batch: int) -> list[Tensor]:
        rows = [PassInput(each.ids, None, (each.case, len(each.ids)), LABELS) for each in work.prompts]
        arms = [
            [
                (Intervention(b + 1, "add", np.float32(s) * work.directions[b], position=_rule(prompt)),)
                for b in range(len(work.directions))
                for s in work.strengths
            ]
            for prompt in work.prompts
        ]
        found = {
            (read.row, read.arm): torch.from_numpy(read.labels.logp)
            for read in sweep(self._backend, rows, arms, batch_size=batch)
        }
        n = len(work.strengths)
        return [found[p, b * n + work.strengths.index(s)] for p, b, s in work.edits]


def _rule(prompt: Steered) -> str:
    return "case" if prompt.everywhere else "prompt_end"


class Whole:
    """A tool that runs whole prompts: here is what such tools share, and each says how it runs one batch."""

    name = ""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, work: Round, batch: int) -> Read:
        return timed(self.machine, lambda: [row for some in self._batches(work, batch) for row in self._labels(*some)])

    def _batches(self, work: Round, batch: int) -> Iterator[tuple[dict[str, Tensor], int, Tensor]]:
        """Inputs, a block, and what is added to its output, ``[batch, pos, width]``."""
        edits, n = work.edits, len(work.prompts) * len(work.strengths)
        for first in range(0, len(edits), n):  # a block's
            for at in range(first, first + n, batch):
                some = edits[at : min(at + batch, first + n)]
                prompts = [work.prompts[p] for p, _, _ in some]
                inputs = padded(prompts, self.machine)
                block, width = some[0][1], inputs["input_ids"].shape[1]
                starts = torch.tensor([width - len(each.ids) + each.start for each in prompts])
                acts = (torch.arange(width) >= starts[:, None]) * torch.tensor([[s] for _, _, s in some])
                added = acts[:, :, None] * torch.from_numpy(work.directions[block])
                yield inputs, block, added.to(self.machine.device, getattr(torch, self.machine.dtype))

    def _labels(self, inputs: dict[str, Tensor], block: int, added: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.logits(inputs, block, added)[:, -1].float().log_softmax(-1)[:, LABEL_IDS].cpu()

    def logits(self, inputs: dict[str, Tensor], block: int, added: Tensor) -> Tensor:
        """The logits ``[batch, kept, vocab]`` of one batch."""
        raise NotImplementedError


class Hooks(Whole):
    """(a) plain transformers: a forward hook on the block."""

    name = "a plain hooks"

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.model = machine.model()

    def logits(self, inputs: dict[str, Tensor], block: int, added: Tensor) -> Tensor:
        hook = self.model.model.layers[block].register_forward_hook(lambda _m, _i, out: out + added)
        try:
            logits: Tensor = self.model(**inputs, use_cache=False, logits_to_keep=1).logits
        finally:
            hook.remove()
        return logits


class Bridge(Whole):
    """(b) TransformerLens: ``run_with_hooks`` at ``hook_resid_post``."""

    name = "b bridge"

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources.transformers import helpers

        helpers._ensure_torchvision = lambda: False  # it may install packages else
        tokenizer = PreTrainedTokenizerFast.from_pretrained(machine.folder)
        self.bridge = TransformerBridge.boot_transformers(
            str(machine.folder), hf_model=machine.model(), tokenizer=tokenizer, device=machine.device,
            dtype=getattr(torch, machine.dtype),
        )  # fmt: skip

    def logits(self, inputs: dict[str, Tensor], block: int, added: Tensor) -> Tensor:
        def steer(value: Tensor, hook: Any) -> Tensor:
            return value + added

        logits: Tensor = self.bridge.run_with_hooks(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=inputs["position_ids"],
            fwd_hooks=[(f"blocks.{block}.hook_resid_post", steer)], logits_to_keep=1, use_cache=False,
        )  # fmt: skip
        return logits


class NNsight(Whole):
    """(c) nnsight: ``trace``."""

    name = "c nnsight trace"

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        from nnsight import TransformersModel

        tokenizer = PreTrainedTokenizerFast.from_pretrained(machine.folder)
        self.model = TransformersModel(machine.model(), task="text-generation", tokenizer=tokenizer, dispatch=True)

    def logits(self, inputs: dict[str, Tensor], block: int, added: Tensor) -> Tensor:
        model = self.model
        with model.trace(inputs, use_cache=False, logits_to_keep=1):
            model.model.layers[block].output = model.model.layers[block].output + added
            logits = model.lm_head.output.save()
        found: Tensor = logits
        return found


def timed(machine: Machine, work: Callable[[], Sequence[Tensor]]) -> Read:
    machine.wait()
    started = machine.now()
    logp = work()
    machine.wait()
    return Read(torch.stack(list(logp)), machine.now() - started)
