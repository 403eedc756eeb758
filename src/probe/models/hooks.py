"""Reads and edits of one forward, as plain hooks on modules of blocks. Knows streams; knows no cache and no logits.

At one hook point edits come before reads. ``resid_mid`` is the block's input plus its attention term and no module
gives it, so that to edit it is to add the same to ``attn_out``, after that stream's own edits: what is read of both
always adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.models.protocol import Reads
from probe.models.streams import BlockStreams, Streams, Term
from probe.models.tensors import first_argument, first_tensor, with_first


class Recorded:
    """What the hooks of one forward took: small copies, so that no activation outlives its block."""

    def __init__(self, reads: Reads) -> None:
        self._columns = reads.columns
        self._spans = reads.spans
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._weights: dict[torch.device, Tensor] = {}
        self._streams = {
            stream: [point for point in reads.points if point.stream == stream]
            for stream in dict.fromkeys(point.stream for point in reads.points)
        }
        self.values: dict[str, Float[Tensor, "layer batch column width"]] = {}
        self.means: dict[str, Float[Tensor, "layer batch span width"]] = {}

    def take(self, point: HookPoint, hidden: Float[Tensor, "batch pos width"]) -> None:
        """Keep what the reads ask of a point: its columns, and the means over its spans."""
        # A token alone is every column; the index would cost each decoding step more than the copy.
        read = hidden if hidden.shape[1] == 1 else hidden[self._index_on(hidden.device)]
        self._put(self.values, point, read.expand(*self._columns.shape, -1))
        if self._spans is not None:
            if hidden.device not in self._weights:
                self._weights[hidden.device] = span_weights(self._spans.to(hidden.device), hidden.shape[1])
            weights = self._weights[hidden.device]
            self._put(self.means, point, einsum(weights, hidden.float(), "batch span pos, batch pos d -> batch span d"))

    def _index_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns that are read, on a block's device."""
        if device not in self._index:
            rows = torch.arange(self._columns.shape[0], device=device)[:, None]
            self._index[device] = rows, self._columns.to(device)
        return self._index[device]

    def _put(self, found: dict[str, Tensor], point: HookPoint, value: Tensor) -> None:
        own = self._streams[point.stream]
        if point.stream not in found:
            # Where the columns are: blocks may lie on several devices, and what is read comes back on one.
            found[point.stream] = value.new_empty((len(own), *value.shape), device=self._columns.device)
        found[point.stream][own.index(point)] = value


def span_weights(spans: Int[Tensor, "batch span 2"], n_pos: int) -> Float[Tensor, "batch span pos"]:
    """The weights that take values at ``n_pos`` positions to their means over spans; all 0 for an empty one."""
    at = torch.arange(n_pos, device=spans.device)
    start, end = rearrange(spans, "batch span two -> two batch span 1")
    inside = ((start <= at) & (at < end)).float()
    weights: Tensor = inside / inside.sum(-1, keepdim=True).clamp(min=1)
    return weights


@contextmanager
def hooked(
    blocks: nn.ModuleList, streams: Streams, reads: Reads, edits: Sequence[Edit], n_pos: int
) -> Iterator[Recorded]:
    """Hooks for one forward over ``n_pos`` new tokens; whatever happens in it, they are gone after it."""
    recorded, passes = block_passes(reads, edits, n_pos)
    with ExitStack() as hooks:
        for at, own in passes.items():
            if at == len(blocks):
                _hook_after(hooks, blocks[-1], own)
            else:
                _hook_inside(hooks, blocks[at], own, streams.blocks[at])
        yield recorded


def block_passes(reads: Reads, edits: Sequence[Edit], n_pos: int) -> tuple[Recorded, dict[int, BlockPass]]:
    """What each block meets in one forward over ``n_pos`` new tokens, by layer; L stands for what follows the last."""
    recorded = Recorded(reads)
    return recorded, {
        at: BlockPass(
            edits=[edit for edit in upstream_first(edits) if edit.point.layer == at],
            reads=[point for point in reads.points if point.layer == at],
            recorded=recorded,
            shape=(reads.columns.shape[0], n_pos),
        )
        for at in sorted({point.layer for point in (*reads.points, *(edit.point for edit in edits))})
    }


def upstream_first(edits: Sequence[Edit]) -> list[Edit]:
    """Edits in their order, but those of ``resid_mid`` last: they share a module with ``attn_out``, which is upstream.

    Else the other rows of a batch, whose edits are stacked with a row's own, would decide which of the two comes first.
    """
    return sorted(edits, key=lambda edit: edit.point.stream == "resid_mid")


class BlockPass:
    """The edits and reads that one block meets in one forward, wherever the activations come from.

    Each method takes activations ``[batch, pos, width]``, in the order in which the block comes to them, and gives them
    back edited, or the very same tensor.
    """

    def __init__(self, edits: list[Edit], reads: list[HookPoint], recorded: Recorded, shape: tuple[int, int]) -> None:
        self.met = frozenset(point.stream for point in (*reads, *(edit.point for edit in edits)))
        self.shape = shape
        self._edits = edits
        self._reads = reads
        self._recorded = recorded
        self._pre: Tensor | None = None

    def resid(self, hidden: Tensor) -> Tensor:
        """The residual point."""
        hidden = self._passed("resid", hidden)
        self._pre = hidden if "resid_mid" in self.met else None  # else every block's input would outlive its block
        return hidden

    def heads(self, hidden: Tensor) -> Tensor:
        """The heads' outputs, side by side."""
        return self._passed("head_out", hidden)

    def attention(self, added: Tensor) -> Tensor:
        """What attention adds to the residual."""
        return self._of_term(added, ("attn_out", "resid_mid"))

    def mlp(self, added: Tensor) -> Tensor:
        """What the MLP adds to the residual."""
        return self._of_term(added, ("mlp_out",))

    def _of_term(self, added: Tensor, names: tuple[str, ...]) -> Tensor:
        """The term after its edits, in their order, when its reads have been taken."""
        if self._pre is not None:  # the first block of a device is hooked where the one before it lies
            self._pre = self._pre.to(added.device)
        for edit in self._edits:
            if edit.point.stream == "resid_mid" and "resid_mid" in names:
                assert self._pre is not None
                wanted = (edit(self._pre + added).float() - self._pre.float()).to(added.dtype)
                added = torch.where(edit.on(added.device).where[:, :, None], wanted, added)
            elif edit.point.stream in names:
                added = edit(added)
        for point in self._reads:
            if point.stream == "resid_mid" and "resid_mid" in names:
                assert self._pre is not None
                self._recorded.take(point, self._pre + added)
            elif point.stream in names:
                self._recorded.take(point, added)
        if "resid_mid" in names:
            self._pre = None
        return added

    def _passed(self, stream: str, hidden: Tensor) -> Tensor:
        """The activations after their edits, in their order, when their reads have been taken."""
        for edit in self._edits:
            if edit.point.stream == stream:
                hidden = edit(hidden)
        for point in self._reads:
            if point.stream == stream:
                self._recorded.take(point, hidden)
        return hidden


def _hook_after(hooks: ExitStack, block: nn.Module, own: BlockPass) -> None:
    """The last residual point: the output of the last block."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        hidden = first_tensor(output)
        assert hidden is not None
        edited = own.resid(hidden)
        return None if edited is hidden else with_first(output, edited)

    hooks.callback(block.register_forward_hook(hook).remove)


def _hook_inside(hooks: ExitStack, block: nn.Module, own: BlockPass, parts: BlockStreams | None) -> None:
    """The residual point before a block, and the streams inside it."""

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = first_argument(args, kwargs)
        assert given is not None
        edited = own.resid(given.value)
        return None if edited is given.value else given.replaced(edited)

    def project(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = first_argument(args, kwargs)
        assert given is not None
        heads = given.value.reshape(*own.shape, -1)
        edited = own.heads(heads)
        return None if edited is heads else given.replaced(edited.reshape(given.value.shape))

    if own.met & {"resid", "resid_mid"}:
        hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    if own.met <= {"resid"}:
        return
    assert parts is not None
    if own.met & {"attn_out", "resid_mid"}:
        _hook_term(hooks, block, parts.attention, own.attention, own.shape)
    if "mlp_out" in own.met:
        _hook_term(hooks, block, parts.mlp, own.mlp, own.shape)
    if "head_out" in own.met:
        assert parts.heads is not None
        projection = block.get_submodule(parts.heads)
        hooks.callback(projection.register_forward_pre_hook(project, with_kwargs=True).remove)


def _hook_term(
    hooks: ExitStack, block: nn.Module, term: Term, function: Callable[[Tensor], Tensor], shape: tuple[int, int]
) -> None:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        own = first_tensor(output)
        assert own is not None
        before = own.reshape(*shape, -1)
        added = before if term.scale == 1 else before * term.scale
        after = function(added)
        if after is added:
            return None
        if term.scale != 1:  # where nothing was edited the module's own output stays, bit for bit
            after = torch.where(after == added, before, after / term.scale)
        return with_first(output, after.reshape(own.shape))

    hooks.callback(block.get_submodule(term.path).register_forward_hook(hook).remove)
