"""The same rows through each tool that a user would pick: residuals and labels at the prompt's end, and the answer.

Each tool runs its rows in the order in which they come, left-padded, in batches of the size that it is told, and gives
the same outputs. Ours also parses the answers and commits the rows to a store. Every tool has a model of its own,
loaded from one folder, so that no tool's hooks cost another anything.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from capture_rows import LETTERS, Got, Machine, Ran, Row, in_batches, padded, together
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from probe.capture import Capturer, Job, PassSettings, capture_shard, decoding
from probe.models import find_model
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.models.protocol import Forward, Reads
from probe.prompts import LetterVocabulary
from probe.store import Plan, StoreLock, open_writer
from probe.values import CellRecord


class Ours:
    """``capture_shard`` and the store's commit, as ``probe run`` calls them."""

    name = "ours"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(machine.folder)
        source = find_model(str(machine.folder))
        loaded = load_backend(source, backend="hf", dtype=machine.dtype, device=machine.device, attention=None)
        assert isinstance(loaded, HFBackend)
        self.backend: HFBackend | _Bare = loaded

    def run(self, rows: Sequence[Row], batch: int) -> Ran:
        with tempfile.TemporaryDirectory() as folder:
            return self._into(Path(folder), rows, batch)

    def _into(self, folder: Path, rows: Sequence[Row], batch: int) -> Ran:
        shape = self.backend.facts.shape
        capturer, jobs = self._capturer(rows, batch), [row.job for row in rows]
        with StoreLock.acquire(folder) as lock:
            writer = open_writer(folder, manifest(shape.n_layers + 1, shape.d_model, self.machine.dtype), lock=lock)
            writer.add_plan(plan_of(jobs, batch))
            writer.start_run({})

            def work() -> list[Got]:
                result = capture_shard(capturer, jobs, lambda done: None)
                assert not result.failed, result.failed[0].reason
                writer.commit(result.records)
                return [_got(record) for record in result.records]

            with _own_lengths(rows):
                ran = self.machine.timed(work)
            writer.finish_run(0)
        return ran

    def _capturer(self, rows: Sequence[Row], batch: int) -> Capturer:
        n_layers = self.backend.facts.shape.n_layers
        return Capturer(
            backend=self.backend,
            tokenizer=self.tokenizer,
            vocabulary=LetterVocabulary(self.tokenizer, LETTERS),
            letters=LETTERS,
            options=tuple(letter.lower() for letter in LETTERS),
            settings=PassSettings(
                residual_points(tuple(range(n_layers + 1))), ("prompt_end",), max(row.new for row in rows)
            ),
            batch_size=batch,
            dtype=self.machine.dtype,
        )


def plan_of(jobs: Sequence[Job], batch: int) -> Plan:
    personas, cases = ({getattr(job.row.cell, kind) for job in jobs} for kind in ("persona", "case"))
    role = {"role": "", "style": "", "sha256": ""}
    family = {"family": "", "stratum": "", "target": None, "sha256": ""}
    return Plan(
        tuple(job.row for job in jobs),
        tuple({"id": name, **role} for name in sorted(personas)),
        tuple({"id": name, **family} for name in sorted(cases)),
        0,
        batch,
    )


def manifest(layers: int, d_model: int, dtype: str) -> dict[str, Any]:
    """The least that a store must know."""
    capture = {"layers": list(range(layers)), "positions": ["prompt_end"], "dtype": dtype, "d_model": d_model}
    options = [letter.lower() for letter in LETTERS]
    return {"model": {"weights_sha256": "ab" * 32}, "capture": capture, "labels": {"options": options}}


def _got(record: CellRecord) -> Got:
    resid = torch.from_numpy(np.asarray(record.resid["prompt_end"], np.float32))
    return Got(resid, torch.from_numpy(record.labels["prompt_end"].logp), list(record.gen_tokens))


@contextmanager
def _own_lengths(rows: Sequence[Row]) -> Iterator[None]:
    """Each row stops after its own number of tokens, which the engine learns only when the row gets there."""
    lengths = {row.job.row.cell.row_id: row.new for row in rows}
    usual = decoding.new_token_cap
    decoding.new_token_cap = lambda row, _most, _context: (lengths[row.key[0]], "length")
    try:
        yield
    finally:
        decoding.new_token_cap = usual


class Floor(Ours):
    """The model alone in our schedule: no hook is set, and nothing around its forwards is inside the clock.

    The engine runs as ever, so that every forward gets the tokens, the mask and the cache that it gets in ours.
    """

    name = "floor"

    def __init__(self, ours: Ours) -> None:
        assert isinstance(ours.backend, HFBackend)
        self.machine, self.tokenizer = ours.machine, ours.tokenizer
        self._clocked = _Clocked(ours.backend.model, ours.machine)
        self.backend = _Bare(ours.backend, self._clocked)

    def run(self, rows: Sequence[Row], batch: int) -> Ran:
        self._clocked.seconds = 0.0
        got = super().run(rows, batch).got
        return Ran(self._clocked.seconds, got)


class _Clocked:
    """A model whose calls are timed."""

    def __init__(self, model: Any, machine: Machine) -> None:
        self._model, self._machine, self.seconds = model, machine, 0.0

    def __call__(self, **inputs: Any) -> Any:
        self._machine.wait()
        started = self._machine.now()
        output = self._model(**inputs)
        self._machine.wait()
        self.seconds += self._machine.now() - started
        return output


class _Bare:
    """A backend whose forward sets no hooks: what was to be read is zeros, and only the logits are the model's."""

    def __init__(self, backend: HFBackend, model: _Clocked) -> None:
        self.facts, self._backend = backend.facts, copy.copy(backend)
        self._backend.model = model

    def forward(
        self, ids: Tensor, mask: Tensor, reads: Reads, *, cache: Any = None, edits: Sequence[Any] = ()
    ) -> Forward:
        assert not edits
        nothing = Reads((), reads.columns[:, :0], None, reads.logits_at)
        forward = self._backend.forward(ids, mask, nothing, cache=cache)
        shape = (len(reads.points), *reads.columns.shape, self.facts.shape.d_model)
        zeros = ids.new_zeros(1, dtype=self.facts.dtype).expand(shape)
        return Forward(forward.logits, {"resid": zeros}, {}, forward.cache)


class HiddenStates:
    """(a) a forward with ``output_hidden_states``, then ``generate``; (a') the same with the rows sorted by length.

    The last residual point comes from a hook: the last of ``hidden_states`` is after the final norm.
    """

    def __init__(self, machine: Machine, model: Any, *, by_length: bool = False) -> None:
        self.name = "a' sorted" if by_length else "a hidden states"
        self.machine, self.model, self._by_length = machine, model, by_length

    def run(self, rows: Sequence[Row], batch: int) -> Ran:
        return self.machine.timed(lambda: self._all(rows, batch))

    def _all(self, rows: Sequence[Row], batch: int) -> list[Got]:
        if not self._by_length:
            return [got for some in in_batches(rows, batch) for got in self._batch(some)]
        order = sorted(range(len(rows)), key=lambda k: len(rows[k].ids))
        found = [got for some in in_batches([rows[k] for k in order], batch) for got in self._batch(some)]
        return [found[place] for place in np.argsort(order)]

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Row]) -> list[Got]:
        inputs = padded(rows, self.machine)
        last: list[Tensor] = []
        hook = self.model.model.layers[-1].register_forward_hook(lambda _m, _i, out: last.append(out[:, -1].clone()))
        out = self.model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        hook.remove()
        points = torch.stack([*(state[:, -1] for state in out.hidden_states[:-1]), *last])
        return together(rows, points, out.logits[:, -1], generated(self.model, rows, inputs))


class Bridge:
    """(b) TransformerLens: ``run_with_cache`` with ``names_filter`` at the last position, then ``generate``."""

    name = "b bridge"

    def __init__(self, machine: Machine) -> None:
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources.transformers import helpers

        helpers._ensure_torchvision = lambda: False  # it may install packages else
        self.machine = machine
        tokenizer = PreTrainedTokenizerFast.from_pretrained(machine.folder)
        self.bridge = TransformerBridge.boot_transformers(
            str(machine.folder), hf_model=machine.model(), tokenizer=tokenizer, device=machine.device,
            dtype=getattr(torch, machine.dtype),
        )  # fmt: skip
        n_layers = self.bridge.cfg.n_layers
        self._names = [
            *(f"blocks.{k}.hook_resid_pre" for k in range(n_layers)),
            f"blocks.{n_layers - 1}.hook_resid_post",
        ]

    def run(self, rows: Sequence[Row], batch: int) -> Ran:
        return self.machine.timed(lambda: [got for some in in_batches(rows, batch) for got in self._batch(some)])

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Row]) -> list[Got]:
        inputs = padded(rows, self.machine)
        logits, cache = self.bridge.run_with_cache(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=inputs["position_ids"],
            names_filter=self._names, pos_slice=-1, logits_to_keep=1,
        )  # fmt: skip
        points = torch.stack([cache[name].reshape(len(rows), -1) for name in self._names])
        return together(rows, points, logits[:, -1], generated(self.bridge.original_model, rows, inputs))


class NNsight:
    """(c) nnsight: one traced ``generate`` that saves during its prefill; (d) ``trace``, then ``generate``."""

    def __init__(self, machine: Machine, wrapped: Any, *, one_pass: bool) -> None:
        self.name = "c nnsight one pass" if one_pass else "d nnsight trace"
        self.machine, self.model, self._one_pass = machine, wrapped, one_pass

    @staticmethod
    def wrap(machine: Machine) -> Any:
        from nnsight import TransformersModel

        tokenizer = PreTrainedTokenizerFast.from_pretrained(machine.folder)
        return TransformersModel(machine.model(), task="text-generation", tokenizer=tokenizer, dispatch=True)

    def run(self, rows: Sequence[Row], batch: int) -> Ran:
        one = self._generate if self._one_pass else self._trace
        return self.machine.timed(lambda: [got for some in in_batches(rows, batch) for got in one(some)])

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row]) -> list[Got]:
        import nnsight

        model, inputs, settings = self.model, padded(rows, self.machine), generation(rows)
        del inputs["position_ids"]  # generate makes the same from the mask
        with model.generate(inputs, **settings) as tracer:
            points = nnsight.save([])
            for block in model.model.layers:
                points.append(block.input[:, -1].clone())
            points.append(model.model.layers[-1].output[:, -1].clone())
            logits = model.lm_head.output[:, -1].clone().save()
            tokens = tracer.result.save()
        return together(rows, torch.stack(points), logits, tokens[:, inputs["input_ids"].shape[1] :])

    @torch.inference_mode()
    def _trace(self, rows: Sequence[Row]) -> list[Got]:
        import nnsight

        model, inputs = self.model, padded(rows, self.machine)
        with model.trace(inputs, use_cache=False, logits_to_keep=1):
            points = nnsight.save([])
            for block in model.model.layers:
                points.append(block.input[:, -1].clone())
            points.append(model.model.layers[-1].output[:, -1].clone())
            logits = model.lm_head.output[:, -1].clone().save()
        return together(rows, torch.stack(points), logits, generated(model._module, rows, inputs))


def generation(rows: Sequence[Row]) -> dict[str, Any]:
    """``generate`` goes on until the longest answer of a batch is done: its finished rows cannot leave."""
    return {"max_new_tokens": max(row.new for row in rows), "do_sample": False, "pad_token_id": 0}


def generated(model: Any, rows: Sequence[Row], inputs: Mapping[str, Tensor]) -> Tensor:
    kept = {name: value for name, value in inputs.items() if name != "position_ids"}
    return model.generate(**kept, **generation(rows))[:, inputs["input_ids"].shape[1] :]
