"""The activations in what modules are given and give back. Knows tuples and keywords; knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_NAME = "hidden_states"


@dataclass(frozen=True, eq=False)
class Argument:
    """The activations that a module is given, by position or by keyword, and how to give it others instead."""

    value: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str | None

    def replaced(self, value: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other activations, as a forward pre-hook returns them."""
        if self.name is None:
            return (value, *self.args[1:]), dict(self.kwargs)
        return self.args, {**self.kwargs, self.name: value}


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Argument | None:
    """The activations that a module is given: its first argument, the keyword ``hidden_states``, or the first tensor.

    None for a module that is given no tensor in either way.
    """
    if args and isinstance(args[0], Tensor):
        return Argument(args[0], args, kwargs, None)
    tensors = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
    if args or not tensors:
        return None
    name = _NAME if _NAME in tensors else tensors[0]
    return Argument(kwargs[name], args, kwargs, name)


def first_tensor(output: Any) -> Tensor | None:
    """The activations that a module gives: its output, or the first of a tuple (attention weights follow).

    A bare ``output[0]`` on a tensor would be batch row 0.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_first(output: Any, value: Tensor) -> Any:
    """A module's output with other activations."""
    if isinstance(output, list):
        return [value, *output[1:]]
    return (value, *output[1:]) if isinstance(output, tuple) else value
