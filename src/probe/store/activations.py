"""Residual points under TransformerLens' names. Knows the names; reads a point when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probe.store.names import UnknownName
from probe.store.residuals import Residuals

_HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post)")

Name = str | tuple[str, int]


@dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[Name, np.ndarray]):
    """A read-only mapping like that of ``run_with_cache``, at one position: name to float32 ``[rows, d_model]``.

    Point k is ``blocks.{k-1}.hook_resid_post``, and as well ``blocks.{k}.hook_resid_pre``; point 0, the embedding with
    whatever is added to it, has only the latter name. ``("resid_post", k)`` is ``blocks.{k}.hook_resid_post``. Nothing
    is kept: each access reads again.
    """

    points: Sequence[int]
    read: Callable[[int], Residuals] = field(repr=False)

    def __getitem__(self, name: Name) -> np.ndarray:
        return self.lazy(name).numpy()

    def __iter__(self) -> Iterator[Name]:
        return iter(self.names)

    @property
    def names(self) -> list[str]:
        """The name of each captured point, rising."""
        return [f"blocks.{point - 1}.hook_resid_post" if point else "blocks.0.hook_resid_pre" for point in self.points]

    def __len__(self) -> int:
        return len(self.points)

    def __contains__(self, name: object) -> bool:
        return self._point(name) in self.points

    def lazy(self, name: Name) -> Residuals:
        """What stands under a name, not yet read.

        Raises:
            UnknownName: no captured residual point has this name.
        """
        point = self._point(name)
        if point is None or point not in self.points:
            raise UnknownName(f"no captured residual point is called {name!r}; the cache holds {', '.join(self.names)}")
        return self.read(point)

    @staticmethod
    def _point(name: object) -> int | None:
        if isinstance(name, tuple) and len(name) == 2:
            name = f"blocks.{name[1]}.hook_{name[0]}"
        match = _HOOK.fullmatch(name) if isinstance(name, str) else None
        return None if match is None else int(match[1]) + (match[2] == "resid_post")
