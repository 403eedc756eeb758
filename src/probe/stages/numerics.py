"""What may move the low bits of a capture. Knows versions and devices as runs record them; computes nothing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from probe.values import StoreMismatch

if TYPE_CHECKING:
    from probe.models.protocol import Backend, ModelFacts
    from probe.stages.resolution import Resolved

VERSIONS_OF = ("persona-probe", "torch", "transformers", "tokenizers", "safetensors", "numpy")
_LIBRARY_OF = {"transformer-lens": ("transformer-lens",), "nnsight": ("nnsight",)}
_MOVE_BITS = (
    *("backend", "device", "device_name", "device_map", "tensor_parallel"),
    *("dtype", "attention", "batch_size", "threads"),
)


def run_facts(resolved: Resolved, backend: Backend) -> dict[str, Any]:
    """What may differ between two runs of the same rows, as the run's record keeps it."""
    import torch

    facts = backend.facts
    return {
        "argv": sys.argv,
        "study": resolved.study.to_mapping(cases=False),
        "versions": {name: version(name) for name in (*VERSIONS_OF, *_LIBRARY_OF.get(facts.backend, ()))}
        | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": str(facts.device),
        "device_name": _device_name(facts),
        "device_map": None if facts.device_map is None else str(facts.device_map),
        "tensor_parallel": None if facts.tensor_parallel == 1 else facts.tensor_parallel,
        "backend": facts.backend,
        "dtype": str(facts.dtype).removeprefix("torch."),
        "architecture": facts.architecture,
        "attention": facts.attention,
        "padding_side": "left",
        "batch_size": resolved.batch_size,
        "threads": torch.get_num_threads(),
        "placement": resolved.placement,
        "ignored_generation_config": dict(facts.shape.ignored),
    }


def _device_name(facts: ModelFacts) -> str:
    """What computes, by its maker's name; every kind of device that a model over several lies on."""
    import torch

    devices = [facts.device] if facts.device_map is None else facts.device_map.shares(facts.device)
    on_cuda = [torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"]
    return " and ".join(dict.fromkeys(on_cuda)) or platform.machine()


def what_moved(runs: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """How this run differs from the last one that committed rows, in what may move low bits; empty without one."""
    before = next((run for run in reversed(runs) if run.get("shards") and "versions" in run), None)
    if before is None:
        return []
    pairs = {f"{name} version": (before["versions"].get(name), now["versions"][name]) for name in VERSIONS_OF[1:3]}
    pairs |= {name: (_fact(before, name), _fact(now, name)) for name in _MOVE_BITS}
    return [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]


def _fact(run: Mapping[str, Any], name: str) -> Any:
    """A fact of a run; runs of versions with one backend do not name it."""
    return run.get(name, "hf" if name == "backend" else None)


def require_same(moved: Sequence[str], where: str) -> None:
    """Refuse to continue a store under other numerics.

    Raises:
        StoreMismatch: something differs.
    """
    if moved:
        raise StoreMismatch(
            f"--strict-numerics: the last rows of {where} were captured otherwise ({'; '.join(moved)}), so low bits "
            "may differ; go back to that, or run without --strict-numerics, which records the difference"
        )
