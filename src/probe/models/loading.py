"""From a model folder to a checked backend. Knows the backends by name; this is where one is chosen."""

from __future__ import annotations

from transformers.utils.logging import disable_progress_bar

from probe.models import nnsight, transformer_lens
from probe.models.check import check_backend
from probe.models.divided_check import check_divided
from probe.models.hf import HFBackend, resolve_device
from probe.models.protocol import Backend
from probe.models.sources import ModelSource
from probe.models.spread import ONE_DEVICE, Spread
from probe.values import ModelError

_QUIET_BYTES = 2**30
"""A smaller model loads in a moment: transformers' own progress bar would only be noise."""


def load_backend(
    source: ModelSource,
    *,
    backend: str,
    dtype: str,
    device: str,
    attention: str | None,
    remote: bool | str = False,
    spread: Spread = ONE_DEVICE,
) -> Backend:
    """Load a model and check that its hooks read what they say.

    ``remote`` is where nnsight runs its traces: ``False`` here; ``True`` on NDIF, which then holds the weights;
    ``"local"`` here, packed up and unpacked as if they were sent there. ``spread``: the devices that the model lies on.

    Raises:
        ModelError: an unknown backend or one whose library is not installed, a folder that does not load, an
            architecture that the backend cannot serve, or a failed check.
    """
    if backend == nnsight.NAME:
        nnsight.require_library()  # before weights are read, which may take minutes
    elif backend == transformer_lens.NAME:
        attention = transformer_lens.require_eager(attention)
        transformer_lens.require_library()
    elif backend != "hf":
        raise ModelError(f"a backend is hf, {transformer_lens.NAME} or {nnsight.NAME}; found {backend!r}")
    spread.require(backend)
    if remote is True:
        hosted = nnsight.NDIFBackend(source)
        with nnsight.answering(source):
            check_backend(hosted)
        return hosted
    if source.weight_bytes < _QUIET_BYTES:
        disable_progress_bar()
    loaded = HFBackend.load(source, dtype=dtype, device=device, attention=attention, spread=spread)
    if loaded.facts.tensor_parallel > 1:
        check_divided(loaded.model, loaded.blocks)
    if backend == nnsight.NAME:
        traced = nnsight.NNsightBackend(loaded, source, remote)
        check_backend(traced, loaded.model)
        return traced
    check_backend(loaded, loaded.model)
    if backend == transformer_lens.NAME:
        wrapped = transformer_lens.TransformerLensBackend(loaded)
        check_backend(wrapped)  # it has been compared with what it was, and that with the model's own report
        return wrapped
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
