"""Where a block adds to the residual, found by what its modules do. Knows module trees; knows no architecture by name.

One short forward is watched. Two modules of a block are its attention and its MLP only if their outputs, each times one
number, take the block's input to its output: ``pre + attention + mlp == post``. So post-norms are inside the terms, and
multipliers are part of them. What cannot be shown so is missing, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.models.spread import main_device
from probe.models.tensors import first_argument, first_tensor
from probe.values import ModelError

_LENGTH = 6
_SLACK = 2
"""In units of the compute dtype's eps: an element of a sum may be off by so much of its terms' sizes together."""
_SAME = {torch.float32: 1e-4, torch.float64: 1e-8}
_LEAST_SCALE = 1e-3
_PARALLEL = 1e-9
_NO_BETTER = 4
"""Two terms explain what a block adds if that leaves a squared error of less than one part in so many of one's."""


@dataclass(frozen=True)
class Term:
    """``scale`` times the output of the module at ``path`` (from its block) is what the block adds to the residual."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class BlockStreams:
    """The parts of one block. ``parallel``: the MLP does not see what the attention adds, so there is no point between.

    ``attention`` is the term of whatever mixes tokens: attention, linear attention or a state-space mixer. The heads'
    outputs, side by side and ``head_width`` wide in all, are the input of the projection at ``heads``.
    """

    attention: Term
    mlp: Term
    parallel: bool
    heads: str | None = None
    head_width: int = 0


@dataclass(frozen=True)
class Streams:
    """The parts of every block, the width of each stream that all blocks have, and why the others are missing."""

    blocks: tuple[BlockStreams | None, ...]
    widths: Mapping[str, int]
    missing: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a submodule: its input and its output, as ``[batch * pos, width]`` in fp64 on the CPU."""

    path: str
    module: nn.Module
    given: Float[Tensor, "token in"] | None
    gave: Float[Tensor, "token out"]


@torch.inference_mode()
def find_streams(model: Any, blocks: nn.ModuleList) -> tuple[Streams, Any]:
    """The streams of a decoder, and what its forward returned (whose cache says what such a cache can do).

    The forward has two rows, which share their last token's input to every block and no earlier one: what still differs
    there came from other tokens.

    Raises:
        ModelError: the blocks are not given one vector for each token.
    """
    text = model.config.get_text_config(decoder=True)
    ids = torch.arange(2 * _LENGTH).reshape(2, _LENGTH).remainder(text.vocab_size).to(main_device(model))
    watches = [_Watch(block, text) for block in blocks]
    with ExitStack() as hooks:
        for watch in watches:
            watch.register(hooks)
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, return_dict=True)
    found = [watch.found for watch in watches]
    return _of_blocks(found, text.hidden_size), output


def _of_blocks(found: Sequence[BlockStreams | str], d_model: int) -> Streams:
    widths, missing = {"resid": d_model}, {}
    blocks = tuple(block if isinstance(block, BlockStreams) else None for block in found)
    strange = next(((b, why) for b, why in enumerate(found) if isinstance(why, str)), None)
    if strange is not None:
        why = f"block {strange[0]} {strange[1]}"
        return Streams(blocks, widths, dict.fromkeys(("resid_mid", "attn_out", "mlp_out", "head_out"), why))
    known = [block for block in found if isinstance(block, BlockStreams)]
    widths |= {"attn_out": d_model, "mlp_out": d_model}
    parallel = [b for b, block in enumerate(known) if block.parallel]
    if parallel:
        missing["resid_mid"] = f"block {parallel[0]} adds attention and MLP at once, so nothing lies between them"
    else:
        widths["resid_mid"] = d_model
    headless = [b for b, block in enumerate(known) if block.heads is None]
    head_widths = sorted({block.head_width for block in known})
    if headless:
        missing["head_out"] = f"in block {headless[0]} no projection of the heads' outputs gives that of the attention"
    elif len(head_widths) > 1:
        missing["head_out"] = f"its blocks have heads of different widths in all ({', '.join(map(str, head_widths))})"
    else:
        widths["head_out"] = head_widths[0]
    return Streams(blocks, widths, missing)


class _Watch:
    """Everything that the modules of one block do in one forward, and what that says of the block.

    The block is judged when it ends, so that only one block's activations are held.
    """

    def __init__(self, block: nn.Module, config: Any) -> None:
        self.found: BlockStreams | str = "was not called"
        self._block = block
        self._config = config
        self._calls: list[_Call] = []
        self._given: dict[str, list[Any]] = {}
        self._pre: Tensor | None = None

    def register(self, hooks: ExitStack) -> None:
        hooks.callback(self._block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        for path, module in self._block.named_modules():
            if module is not self._block:
                before, after = self._before(path), self._after(path)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after).remove)
        hooks.callback(self._block.register_forward_hook(self._leave).remove)

    def _enter(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        argument = first_argument(args, kwargs)
        if argument is None or argument.value.dim() != 3:
            found = "no tensor" if argument is None else f"shape {list(argument.value.shape)}"
            raise ModelError(
                f"a block is given its residual stream as [batch, pos, d_model], and those of "
                f"{self._config.model_type} are given {found}; this architecture is not supported"
            )
        hidden = argument.value.clone()
        hidden[1, -1] = hidden[0, -1]
        self._pre = hidden.clone()
        return argument.replaced(hidden)

    def _before(self, path: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            argument = first_argument(args, kwargs)
            self._given.setdefault(path, []).append(None if argument is None else self._flat(argument.value))

        return hook

    def _after(self, path: str) -> Any:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            given = self._given[path].pop()
            gave = self._flat(first_tensor(output))
            if gave is not None:
                self._calls.append(_Call(path, module, given, gave))

        return hook

    def _leave(self, _module: Any, _args: Any, output: Any) -> None:
        post = self._flat(first_tensor(output))
        pre = self._flat(self._pre)
        assert pre is not None
        if post is None or post.shape != pre.shape:
            self.found = "does not give as many values as it takes"
        else:
            assert self._pre is not None
            judged = _Judge(pre, post, self._calls, self._pre.dtype, _numbers(self._config))
            self.found = judged.block()
        self._calls, self._pre = [], None

    def _flat(self, value: Tensor | None) -> Tensor | None:
        """A copy ``[batch * pos, width]``, or None for what does not have one vector for each token."""
        if value is None or not value.is_floating_point() or value.dim() < 2:
            return None
        if value.dim() > 3 or value.shape.numel() != 2 * _LENGTH * value.shape[-1]:
            return None
        return value.detach().to("cpu", torch.float64, copy=True).reshape(-1, value.shape[-1])


def _numbers(config: Any) -> list[float]:
    """The numbers in a configuration: a multiplier that was measured is one of them, exactly."""
    return [1.0, *(float(value) for value in config.to_dict().values() if isinstance(value, float) and value)]


class _Judge:
    """What the calls of one block say of it, tokens in rows."""

    def __init__(self, pre: Tensor, post: Tensor, calls: list[_Call], dtype: torch.dtype, known: list[float]) -> None:
        self._pre, self._post, self._known = pre, post, known
        paths = [call.path for call in calls]
        self._calls = [call for call in calls if paths.count(call.path) == 1]
        self._eps = _SLACK * torch.finfo(dtype).eps
        self._same = _SAME.get(dtype, 2e-2)

    def block(self) -> BlockStreams | str:
        """The parts of the block, or what is strange about it, after the words "block b"."""
        pair = self._pair()
        if isinstance(pair, str):
            return pair
        (first, first_scale), (second, second_scale) = pair
        if not self._mixes(first.gave):
            if not self._mixes(second.gave):
                return "adds two terms, and neither of them depends on other tokens"
            return f"adds the term of {first.path!r}, which sees one token, before that which mixes tokens"
        attention, mlp = Term(first.path, first_scale), Term(second.path, second_scale)
        parallel = not self._is_between(first_scale * first.gave, first, second)
        if parallel and self._mixes(second.gave):
            return f"has no part that reads its input plus the term of {first.path!r}"
        heads = self._heads(first)
        if heads is None:
            return BlockStreams(attention, mlp, parallel)
        assert heads.given is not None
        return BlockStreams(attention, mlp, parallel, heads.path, heads.given.shape[-1])

    def _pair(self) -> tuple[tuple[_Call, float], tuple[_Call, float]] | str:
        """The two calls whose outputs, times one number each, make up what the block adds; the earlier one first."""
        terms = self._distinct()
        added = self._post - self._pre
        found = []
        for (one, two), scales in self._scales(terms, added):
            fits = ((s, t, self._off(s * one.gave, t * two.gave)) for s, t in product(*map(self._exact, scales)))
            fit = next(((s, t, off) for s, t, off in fits if off is not None), None)
            if fit is not None:
                found.append((fit[2], ((one, fit[0]), (two, fit[1]))))
        best, pair = min(found, key=lambda each: each[0], default=(math.inf, None))
        for one in terms:
            alone = self._off(one.gave)
            if alone is not None and alone <= _NO_BETTER * best:
                return f"adds one term, that of {one.path!r}, and not one of attention and one of an MLP"
        return pair or "has no two modules whose outputs take its input to its output (pre + attention + mlp == post)"

    def _scales(self, terms: list[_Call], added: Tensor) -> Iterator[tuple[tuple[_Call, _Call], list[float]]]:
        """For each pair of calls the two numbers that bring their outputs nearest to what was added (least squares)."""
        if not terms:
            return
        # Each element counts by what it was rounded to: else the few that are larger than all others would decide.
        rounding = (self._pre.abs() + self._post.abs()).clamp(min=torch.finfo(torch.float32).tiny)
        rows = torch.stack([(term.gave / rounding).flatten() for term in terms])
        gram, onto = rows @ rows.T, rows @ (added / rounding).flatten()
        for pair in combinations(range(len(terms)), 2):
            own = gram[list(pair)][:, list(pair)]
            if torch.linalg.det(own) <= _PARALLEL * own[0, 0] * own[1, 1]:  # one is a multiple of the other
                continue
            scales = torch.linalg.solve(own, onto[list(pair)]).tolist()
            if min(map(abs, scales)) >= _LEAST_SCALE:
                yield (terms[pair[0]], terms[pair[1]]), scales

    def _distinct(self) -> list[_Call]:
        """Calls as wide as the residual, in order; of equal ones the last, which is nearest to the sum."""
        wide = [call for call in self._calls if call.gave.shape == self._pre.shape and bool(call.gave.any())]
        return [
            call
            for k, call in enumerate(wide)
            if not any(torch.equal(call.gave, later.gave) for later in wide[k + 1 :])
        ]

    def _exact(self, scale: float) -> list[float]:
        """A known number near a measured one, or else that itself."""
        near = [known for known in self._known if abs(known - scale) <= 2e-2 * abs(scale)]
        return [*sorted(near, key=lambda known: abs(known - scale)), scale]

    def _off(self, *terms: Tensor) -> float | None:
        """How far input plus terms is from the output, in units of rounding; None unless they are one but for that."""
        made, size = self._pre + sum(terms), self._pre.abs() + self._post.abs() + sum(term.abs() for term in terms)
        off = (made - self._post).abs()
        return float((off / size).square().nansum()) if bool((off <= self._eps * size).all()) else None

    def _mixes(self, value: Tensor) -> bool:
        """Whether the last token's values differ between rows whose last tokens are one and whose others are not."""
        one, two = value.reshape(2, _LENGTH, -1)[:, -1]
        return bool((one - two).abs().max() > self._same * one.abs().max())  # other tokens may be larger by far

    def _is_between(self, term: Tensor, first: _Call, second: _Call) -> bool:
        """Whether some call after the first term, up to the second, is given input plus term, but for rounding."""
        mid = self._pre + term
        size = self._eps * (self._pre.abs() + term.abs() + mid.abs())
        start, stop = self._calls.index(first) + 1, self._calls.index(second) + 1
        return any(
            call.given is not None and call.given.shape == mid.shape and bool(((call.given - mid).abs() <= size).all())
            for call in self._calls[start:stop]
        )

    def _heads(self, attention: _Call) -> _Call | None:
        """The output projection: the first linear map of values that have already been mixed between tokens.

        Its output must be that of the module it stands in, or of the term itself.
        """
        upto = self._calls[: self._calls.index(attention) + 1]
        for call in upto:
            weight = getattr(call.module, "weight", None)
            linear = isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(call.module, nn.Embedding)
            if not linear or call.given is None or call.gave.shape != self._pre.shape or not self._mixes(call.given):
                continue
            around = [other for other in upto if call.path.startswith(f"{other.path}.") or other is attention]
            return call if any(self._close(call.gave, other.gave) for other in around) else None
        return None

    def _close(self, a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and bool((a - b).abs().max() <= self._same * b.abs().max())
