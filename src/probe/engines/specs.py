"""Which engine, and how large its workers are. Knows names and numbers; starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from probe.values import ProbeError
from probe.values.nearest import nearest

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Engine:
    """Where shards run.

    ``local`` with one worker is this process; with ``workers=N`` it is N processes of this machine. ``ray`` runs N
    workers on a Ray cluster (``address``; by default one that is found, else one that is started here), as many as fit
    where ``workers`` is None. ``slurm`` submits an array of jobs of which ``workers`` run at a time; ``slurm`` holds
    submitit's parameters (``{"slurm_partition": "gpu", "timeout_min": 240}``).

    A worker has ``gpus_per_worker`` devices (by default one where the study runs on CUDA) and ``cpus_per_worker``
    cores, which is also its number of torch threads (by default 1; of local workers, an equal part of the cores).
    ``group`` processes are one worker, which share its devices and cores: a run sets it to ``model.tensor_parallel``.

    Raises:
        ProbeError: there is no such engine, or a number is out of range.
    """

    name: str = "local"
    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None
    slurm: Mapping[str, str | int] = field(default_factory=dict)
    group: int = 1

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ProbeError(f"--engine: {nearest(self.name, ENGINES, 'engine')}")
        counts = (("workers", self.workers), ("cpus-per-worker", self.cpus_per_worker), ("tensor-parallel", self.group))
        for option, number in counts:
            if number is not None and number < 1:
                raise ProbeError(f"--{option} is a whole number from 1, found {number}")
        gpus = self.gpus_per_worker
        if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise ProbeError(f"--gpus-per-worker is 0, a part of one device or a whole number of them, found {gpus}")
        for option, given, engine in (("address", self.address, "ray"), ("slurm", self.slurm, "slurm")):
            if given and self.name != engine:
                raise ProbeError(f"--{option} is of --engine {engine}, and the engine is {self.name}")

    @property
    def in_process(self) -> bool:
        """Whether shards run in this very process."""
        return self.name == "local" and self.workers in (None, 1) and self.group == 1

    def gpus(self, on_cuda: bool) -> float:
        """Devices of a worker, of a study that runs on CUDA here or does not."""
        return self.gpus_per_worker if self.gpus_per_worker is not None else float(on_cuda) * self.group

    @property
    def cpus(self) -> int:
        """Cores of a worker of a cluster."""
        return self.cpus_per_worker or self.group

    @property
    def threads(self) -> int:
        """Torch threads of each process of such a worker."""
        return max(self.cpus // self.group, 1)
