"""From a model folder to a checked backend. Knows the backends by name; this is where one is chosen."""

from __future__ import annotations

from transformers.utils.logging import disable_progress_bar

from probe.models.check import check_backend
from probe.models.hf import HFBackend, resolve_device
from probe.models.protocol import Backend
from probe.models.sources import ModelSource
from probe.values import ModelError

_QUIET_BYTES = 2**30
"""A smaller model loads in a moment: transformers' own progress bar would only be noise."""


def load_backend(source: ModelSource, *, backend: str, dtype: str, device: str, attention: str | None) -> Backend:
    """Load a model and check that its hooks read what they say.

    Raises:
        ModelError: an unknown backend, a folder that does not load, or a failed check.
    """
    if backend != "hf":
        raise ModelError(f"backend {backend!r} is not part of this version; it has: hf")
    if source.weight_bytes < _QUIET_BYTES:
        disable_progress_bar()
    loaded = HFBackend.load(source, dtype=dtype, device=device, attention=attention)
    check_backend(loaded)
    return loaded


def device_kind(wanted: str) -> str:
    """The kind of device (``cpu``, ``cuda``, ``mps``) behind a name; ``auto`` is an accelerator if there is one.

    Raises:
        ModelError: torch knows no such device.
    """
    return resolve_device(wanted).type


def compute_dtype(wanted: str, device: str, checkpoint: str) -> str:
    """The dtype that a model will compute in: ``auto`` is float32 on the CPU and the checkpoint's on an accelerator."""
    if wanted != "auto":
        return wanted
    return "float32" if device == "cpu" else checkpoint
