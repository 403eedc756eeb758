"""What a device computes and moves in a second: published, assumed or measured here. Knows devices; knows no study.

Every figure is an input: ``--hardware h100,compute=.5,bandwidth=2.5e12`` changes those that it names.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from probe.values import ProbeError
from probe.values.nearest import nearest

LAUNCH = 5e-4
"""Seconds that the host needs for one block of one forward, hooks included: what the steps of the organism, whose
arithmetic is next to nothing, take by block (measured by ``benchmarks/sizing.py``)."""

_SHARES = "shares and launch are assumed"
_CHANGEABLE = ("flops", "bandwidth", "memory", "compute", "stream", "launch", "devices")
_TESTED = 1024
_HELD = 2**25
"""Weights, in elements, of which the stand-in for a model's layers has at most so many: more than any cache holds."""


@dataclass(frozen=True)
class Hardware:
    """Rates of one device, or of ``devices`` of them that hold one model together and compute in turns.

    ``flops``: operations a second on dense matrices, a multiplication and its addition being two, of which a large
    matrix product reaches the share ``compute``. ``bandwidth``: bytes a second from its memory, of which weights and
    caches reach the share ``stream``. ``launch``: seconds in which the host prepares one block of one forward; it does
    so while the device computes where that ``overlaps``. ``step_flops``: what a product with few columns reaches, where
    it was measured. ``memory``: bytes of one device, None where it is main memory. ``known`` says where the figures
    are from.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float | None
    known: str
    compute: float = 0.5
    stream: float = 0.6
    launch: float = LAUNCH
    overlaps: bool = True
    step_flops: float | None = None
    devices: float = 1


DEVICES = {
    # NVIDIA's data sheets of the SXM boards; tensor cores without sparsity, bfloat16.
    "a100": Hardware("a100", 312e12, 2.039e12, 80e9, f"data sheet, SXM 80 GB, bf16; {_SHARES}"),
    "h100": Hardware("h100", 989e12, 3.35e12, 80e9, f"data sheet, SXM 80 GB, bf16; {_SHARES}"),
    "h200": Hardware("h200", 989e12, 4.8e12, 141e9, f"data sheet, SXM 141 GB, bf16; {_SHARES}"),
}
"""Devices by the name that ``--hardware`` takes. The shares are assumptions: large dense products reach 30 to 70 % of a
data sheet's rate outside of benchmarks, and eager kernels half to three quarters of the bandwidth."""


def hardware_named(text: str, here: Callable[[], Hardware]) -> Hardware:
    """``h100``, ``h100,compute=.5``, or ``cpu``, which is measured by ``here``; figures after the name stand instead.

    Raises:
        ProbeError: there is no such device or figure.
    """
    name, *changes = [part.strip() for part in text.split(",")]
    names = [*DEVICES, "cpu"]
    if name not in names:
        raise ProbeError(
            f"--hardware: {nearest(name, names, 'device')}; figures of another one are written "
            "h100,flops=4e14,bandwidth=2e12,memory=48e9"
        )
    found = here() if name == "cpu" else DEVICES[name]
    given: dict[str, Any] = dict(_change(change) for change in changes)
    if not given:
        return found
    if "flops" in given:
        given["step_flops"] = None  # what was measured belongs to another device
    return replace(
        found, **given, known=f"{found.known}; given: {', '.join(key for key in given if key in _CHANGEABLE)}"
    )


def _change(text: str) -> tuple[str, float]:
    """One ``figure=number``."""
    key, equals, value = text.partition("=")
    if key not in _CHANGEABLE:
        raise ProbeError(f"--hardware: {nearest(key, _CHANGEABLE, 'figure')}")
    try:
        number = float(value) if equals else -1.0
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ProbeError(f"--hardware: {key} is a number above 0, as {key}=.5; found {text!r}")
    return key, number


def device_here(kind: str, name: str) -> Hardware | None:
    """The device of this machine, by what its driver calls it; None where there are no figures of it."""
    known = [device for device in DEVICES.values() if device.name in name.lower()]
    return known[0] if kind == "cuda" and known else None


Clock = Callable[[], float]


def measured_cpu(
    batch: int, weights: int, *, fed: int, dtype: str = "float32", clock: Clock = time.perf_counter
) -> Hardware:
    """This machine's processor, by stand-ins for a model's layers: products of ``fed`` and of ``batch`` columns with
    ``weights`` elements (at most 134 MB of them in float32), and the sum of a large array. Takes about a second.

    Keys and values are read at half the speed of the sum.
    """
    import torch

    kind: Any = getattr(torch, dtype)
    layers = torch.ones(min(max(weights, 1) // _TESTED**2, _HELD // _TESTED**2) or 1, _TESTED, _TESTED, dtype=kind)
    side = layers if weights >= _TESTED**2 else layers[:, : max(weights // _TESTED, 1)]

    def product(columns: Any) -> None:
        for layer in side:
            torch.nn.functional.linear(columns, layer)

    def rate(columns: int) -> float:
        return (
            2 * columns * side.numel() / _median_of(partial(product, torch.ones(columns, _TESTED, dtype=kind)), clock)
        )

    with torch.inference_mode():
        array = torch.ones(_HELD)
        return Hardware(
            "cpu",
            rate(fed),
            4 * _HELD / _median_of(array.sum, clock),
            None,
            f"measured here, {torch.get_num_threads()} thread(s), {dtype}; shares and launch as in docs/scale.md",
            compute=1.0,
            stream=0.5,
            overlaps=False,
            step_flops=rate(batch),
        )


def _median_of(work: Callable[[], object], clock: Clock, seconds: float = 0.15) -> float:
    """Seconds of the median repetition: what else the machine does slows a run as well."""
    work()
    took, until = list[float](), clock() + seconds
    while not took or clock() < until:
        started = clock()
        work()
        took.append(clock() - started)
    return statistics.median(took)


def figures(hardware: Hardware) -> str:
    """The inputs in one line, and where they are from."""
    parts = {field.name: getattr(hardware, field.name) for field in fields(hardware)}
    text = f"{parts['flops'] / 1e12:.4g} TFLOP/s x {hardware.compute:.2g}"
    if hardware.step_flops is not None:
        text += f" ({hardware.step_flops / 1e12:.3g} at this batch)"
    text += f", {hardware.bandwidth / 1e12:.3g} TB/s x {hardware.stream:.2g}, {1e3 * hardware.launch:.2g} ms a block"
    return f"{text} ({hardware.known})"
