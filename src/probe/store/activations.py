"""Activations under TransformerLens' names. Knows the names; reads a site when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probe.store.names import UnknownName
from probe.store.residuals import Residuals

_INNER = ("resid_mid", "attn_out", "mlp_out")
_HOOK = re.compile(rf"blocks\.(\d+)\.hook_(resid_pre|resid_post|{'|'.join(_INNER)})")

Name = str | tuple[str, int]
Place = tuple[str, int]
"""A stream and a layer of it."""


@dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[Name, np.ndarray]):
    """A read-only mapping like that of ``run_with_cache``, at one position: name to float32 ``[rows, d_model]``.

    Point k is ``blocks.{k-1}.hook_resid_post``, and as well ``blocks.{k}.hook_resid_pre``; point 0, the embedding with
    whatever is added to it, has only the latter name. ``("resid_post", k)`` is ``blocks.{k}.hook_resid_post``.
    ``resid_mid``, ``attn_out`` and ``mlp_out`` of block b are ``blocks.{b}.hook_resid_mid`` and so on; ``head_out``,
    which TransformerLens keeps by heads, has no name here. Nothing is kept: each access reads again.
    """

    places: Sequence[Place]
    read: Callable[[str, int], Residuals] = field(repr=False)

    def __getitem__(self, name: Name) -> np.ndarray:
        return self.lazy(name).numpy()

    def __iter__(self) -> Iterator[Name]:
        return iter(self.names)

    @property
    def names(self) -> list[str]:
        """The name of each captured site, rising, residual points first."""
        return [_name(stream, layer) for stream, layer in self.places if stream in ("resid", *_INNER)]

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return self._place(name) in self.places

    def lazy(self, name: Name) -> Residuals:
        """What stands under a name, not yet read.

        Raises:
            UnknownName: nothing that was captured has this name.
        """
        place = self._place(name)
        if place is None or place not in self.places:
            raise UnknownName(f"nothing that was captured is called {name!r}; the cache holds {', '.join(self.names)}")
        return self.read(*place)

    @staticmethod
    def _place(name: object) -> Place | None:
        if isinstance(name, tuple) and len(name) == 2:
            name = f"blocks.{name[1]}.hook_{name[0]}"
        match = _HOOK.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            return None
        block, stream = int(match[1]), match[2]
        return (stream, block) if stream in _INNER else ("resid", block + (stream == "resid_post"))


def _name(stream: str, layer: int) -> str:
    if stream != "resid":
        return f"blocks.{layer}.hook_{stream}"
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
