"""Forwards that start at a layer, after an earlier one gave what is below. Knows blocks, masks, caches; knows no arm.

The model's own forward is called. For that one call the blocks below the start are stand-ins that give the stored
residual, so that masks, position embeddings, windows, softcaps and the readout are the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.models.caches import CacheLayout, SlotCache
from probe.models.edits import Edit
from probe.models.hooks import hooked
from probe.models.points import HookPoint
from probe.models.protocol import Forward, Reads
from probe.models.tensors import first_argument

if TYPE_CHECKING:
    from probe.models.hf import HFBackend

_MASK = "attention_mask"
_AGREE = {torch.float32: 1e-4, torch.float64: 1e-8}
_LENGTH, _PAD, _ARMS = 10, 3, 3


@dataclass(frozen=True, eq=False)
class Start:
    """Where a forward starts: residual point ``layer``, and what stands there, before any edit.

    ``abreast``: the positions of ``hidden`` are not one after the other. Each is another version of the row's one new
    token; they see the row's past and themselves, and not one another.
    """

    layer: int
    hidden: Float[Tensor, "batch pos d_model"]
    abreast: bool = False


class Resumer:
    """Resumes forwards of one model. ``layout`` is that of its cache; ``abreast`` says whether it can do that too."""

    def __init__(self, backend: HFBackend, layout: CacheLayout) -> None:
        self.layout = layout
        self.abreast = False
        self._backend = backend
        self._tuples = [False] * len(backend.blocks)

    @torch.inference_mode()
    def forward(
        self,
        ids: Int[Tensor, "batch new"],
        mask: Int[Tensor, "batch past_and_new"],
        reads: Reads,
        start: Start,
        *,
        cache: Any,
        edits: Sequence[Edit] = (),
    ) -> Forward:
        """The rest of a forward over new tokens after ``cache``, which from the start on holds what precedes them.

        Reads and edits count the positions of ``start.hidden`` and stand at or above its layer; logits are those of all
        positions where they stand abreast. Whatever happens inside, the model is as before.
        """
        backend, n_pos = self._backend, start.hidden.shape[1]
        backend.facts.require((*reads.points, *(edit.point for edit in edits)))
        inputs, at = backend.inputs.of(ids, mask, reads, cache, backend.facts)
        if start.abreast and "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = n_pos
        with ExitStack() as changes:
            self._start(changes, start, mask.shape[1] - ids.shape[1])
            recorded = changes.enter_context(hooked(backend.blocks, backend.streams, reads, edits, n_pos))
            output = backend.model(**inputs)
        if start.abreast:  # some decoders put them into their batch: they keep to the shape of the ids
            logits = output.logits.to(ids.device).float().reshape(*start.hidden.shape[:2], -1)
        else:
            logits = backend.inputs.logits_in(output, at)
        return Forward(logits, recorded.values, recorded.means, cache)

    def _start(self, changes: ExitStack, start: Start, n_past: int) -> None:
        """Stand-ins below the start, the stored residual at it, and masks for tokens abreast from it on."""
        blocks = self._backend.blocks

        def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = first_argument(args, kwargs)
            assert given is not None
            return given.replaced(start.hidden)

        for b, block in enumerate(blocks):
            if b < start.layer:
                changes.enter_context(standing_in(block, _giver(start.hidden, in_tuple=self._tuples[b])))
            elif b == start.layer:
                changes.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        if start.abreast:
            widen = _WiderMask(start.hidden.shape[1], n_past, start.hidden.device)
            for block in blocks[start.layer :]:
                changes.callback(block.register_forward_pre_hook(widen, with_kwargs=True).remove)

    @torch.inference_mode()
    def watch(self, ids: Tensor, mask: Tensor, reads: Reads, cache: Any) -> Forward:
        """A whole forward, in which is seen what blocks give: a tensor, or a tuple that begins with it."""

        def hook(b: int) -> Callable[..., None]:
            def seen(_module: Any, _args: Any, output: Any) -> None:
                self._tuples[b] = isinstance(output, tuple)

            return seen

        with ExitStack() as hooks:
            for b, block in enumerate(self._backend.blocks):
                hooks.callback(block.register_forward_hook(hook(b)).remove)
            return self._backend.forward(ids, mask, reads, cache=cache)


class _WiderMask:
    """Widens the mask of one new token to that of several versions of it, as a hook of blocks.

    Blocks that share a mask share the wider one.
    """

    def __init__(self, n: int, n_past: int, device: torch.device) -> None:
        self._n, self._n_past, self._device = n, n_past, device
        self._made: dict[int, tuple[Tensor | None, Tensor]] = {}

    def __call__(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = list(inspect.signature(type(block).forward).parameters).index(_MASK) - 1
        if place < len(args):
            return (*args[:place], self._wider(args[place]), *args[place + 1 :]), kwargs
        return args, {**kwargs, _MASK: self._wider(kwargs.get(_MASK))}

    def _wider(self, mask: Tensor | None) -> Tensor:
        if id(mask) not in self._made:  # the mask is kept, so that its id is not another's later
            self._made[id(mask)] = mask, self._make(mask)
        return self._made[id(mask)][1]

    def _make(self, mask: Tensor | None) -> Tensor:
        n = self._n
        if mask is None:  # nothing of the past is masked
            mask = torch.ones((1, 1, 1, self._n_past + 1), dtype=torch.bool, device=self._device)
        seen = mask[..., :-1].expand(-1, -1, n, -1)
        own = torch.eye(n, dtype=torch.bool, device=mask.device)
        if mask.dtype != torch.bool:
            own = torch.zeros_like(own, dtype=mask.dtype).masked_fill(~own, torch.finfo(mask.dtype).min)
        return torch.cat([seen, own.expand(*seen.shape[:2], n, n)], dim=-1)


@dataclass(frozen=True, eq=False)
class AbreastEdit(Edit):
    """An edit of ``batch * n`` rows of one token each, for a forward in which they stand ``n`` abreast."""

    own: Edit | None = None

    @classmethod
    def of(cls, edit: Edit, n: int) -> AbreastEdit:
        """``edit`` is in the order of the rows, and of each row's versions."""
        return cls(edit.point, edit.kind, edit.where.reshape(-1, n), own=edit)

    def __call__(self, hidden: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """See :class:`probe.models.edits.Edit`."""
        assert self.own is not None
        return self.own(hidden.reshape(-1, 1, hidden.shape[-1])).reshape(hidden.shape)


@contextmanager
def standing_in(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another ``forward`` for one block, and its own again whatever happens."""
    own = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _giver(hidden: Tensor, *, in_tuple: bool) -> Callable[..., Any]:
    def give(*_args: Any, **_kwargs: Any) -> Any:
        return (hidden, None) if in_tuple else hidden

    return give


def find_resumer(backend: HFBackend) -> Resumer | None:
    """What resumes the forwards of a model; None where its cache cannot, or what comes out is not what whole ones give.

    Two rows, one of them with pads, are run whole under an edit of their last token, and resumed from several layers.
    """
    if backend.facts.caching != "attention":
        return None
    ids = torch.zeros((1, 1), dtype=torch.long, device=backend.facts.device)
    layout = CacheLayout(backend.forward(ids, torch.ones_like(ids), Reads((), ids)).cache)
    if layout.layers is None or layout.recurrent:
        return None
    resumer = Resumer(backend, layout)
    trial = _Trial(resumer, backend)
    layers = sorted({0, trial.n_layers // 2, trial.n_layers})
    if not all(_holds(trial.again, layer) for layer in layers):
        return None
    resumer.abreast = all(_holds(trial.abreast, layer) for layer in layers)
    return resumer


class _Trial:
    """Two rows whose forwards are known whole, with and without an edit of the last token."""

    def __init__(self, resumer: Resumer, backend: HFBackend) -> None:
        self._resumer, self._backend = resumer, backend
        shape, device = backend.facts.shape, backend.facts.device
        self.n_layers = shape.n_layers
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(0, shape.vocab, (2, _LENGTH), generator=generator).to(device)
        self._mask = torch.ones_like(self._ids)
        self._mask[1, :_PAD] = 0
        points = tuple(HookPoint("resid", layer) for layer in range(shape.n_layers + 1))
        every = torch.arange(_LENGTH, device=device).expand(2, -1)
        self._cache = SlotCache(resumer.layout, 2, _LENGTH + _ARMS)
        self._cache.see(0, 2, 0, 0)
        whole = resumer.watch(self._ids, self._mask, Reads(points, every), self._cache)
        self._hidden, self._plain = whole.values["resid"], whole.logits[:, 0]
        size = self._hidden.float().square().mean(-1).sqrt()[:, :, -1]
        noise = torch.randn(shape.d_model, generator=generator).to(device)
        self._vectors = size[:, :, None] * noise  # as long as what it is added to: [layer, row, d_model]

    def again(self, layer: int) -> bool:
        """The last tokens once more, from a layer on, under the edit."""
        n = _ARMS
        self._cache.see(0, 2, 0, _LENGTH - n)
        start = Start(layer, self._hidden[layer][:, -n:])
        found = self._resumer.forward(
            self._ids[:, -n:], self._mask, self._reads(n - 1), start, cache=self._cache, edits=[self._edit(layer, n)]
        )
        return self._same(found.logits[:, 0], self._edited(layer))

    def abreast(self, layer: int) -> bool:
        """The last token in three versions, of which the second is edited."""
        self._cache.see(0, 2, 0, _LENGTH - 1)
        start = Start(layer, self._hidden[layer][:, -1:].expand(-1, _ARMS, -1), abreast=True)
        where = torch.tensor([[False], [True], [False]] * 2, device=self._ids.device)
        edit = Edit(HookPoint("resid", layer), "add", where, self._vectors[layer].repeat_interleave(_ARMS, 0))
        edits = [AbreastEdit.of(edit, _ARMS)]
        found = self._resumer.forward(
            self._ids[:, -1:], self._mask, self._reads(0), start, cache=self._cache, edits=edits
        ).logits
        wanted = (self._plain, self._edited(layer), self._plain)
        return all(self._same(found[:, k], each) for k, each in enumerate(wanted))

    def _edited(self, layer: int) -> Tensor:
        edits = [self._edit(layer, _LENGTH)]
        return self._backend.forward(self._ids, self._mask, self._reads(0), edits=edits).logits[:, 0]

    def _edit(self, layer: int, n_pos: int) -> Edit:
        where = torch.zeros((2, n_pos), dtype=torch.bool, device=self._ids.device)
        where[:, -1] = True
        return Edit(HookPoint("resid", layer), "add", where, self._vectors[layer])

    def _reads(self, column: int) -> Reads:
        return Reads((), torch.full((2, 1), column, device=self._ids.device))

    def _same(self, found: Tensor, wanted: Tensor) -> bool:
        limit = _AGREE.get(self._backend.facts.dtype, 3e-2) * wanted.abs().max()
        return bool((found - wanted).abs().max() <= limit)


def _holds(trial: Callable[[int], bool], layer: int) -> bool:
    """A trial's finding; a model that cannot be run so at all fails it."""
    try:
        return trial(layer)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
