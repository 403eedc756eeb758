"""From an engine to its pool of workers. Knows the engines by name; this is where one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from probe.engines.groups import together
from probe.engines.processes import Processes, environments
from probe.engines.specs import Engine
from probe.engines.supervision import Pool
from probe.engines.work import Work
from probe.values import ProbeError


def require_installed(engine: Engine) -> None:
    """Refuse an engine whose library is missing, before anything else is done.

    Raises:
        ProbeError: names the command that installs it.
    """
    if engine.name == "ray":
        from probe.engines.ray_cluster import require_ray

        require_ray()
    elif engine.name == "slurm":
        from probe.engines.slurm import require_submitit

        require_submitit()


def open_pool(engine: Engine, work: Work, *, tickets: int, gpus: float, folder: Path, check: Callable[[], str]) -> Pool:
    """Workers for so many tickets, each with ``gpus`` devices.

    ``check`` is run on every node that can be reached beforehand, and says what is wrong there. ``folder`` takes the
    files of jobs and must be seen by every node.

    Raises:
        ProbeError: the engine cannot be started as asked.
    """
    local = engine.name == "local"
    work = together(work, engine.group, threads=None if local else engine.threads, gpus=gpus)
    if engine.name == "ray":
        from probe.engines.ray_cluster import start_ray

        return start_ray(engine, work, tickets=tickets, gpus=gpus, check=check)
    if engine.name == "slurm":
        from probe.engines.slurm import start_slurm

        return start_slurm(engine, work, folder=folder, tickets=tickets, gpus=gpus)
    workers, devices = engine.workers or 1, _devices() if gpus else 0
    if workers * gpus > devices > 0 or (gpus and not devices):
        raise ProbeError(
            f"{workers} workers with {gpus:g} GPUs each need {workers * gpus:g}, and this machine has {devices}; use "
            "fewer --workers, or --gpus-per-worker with a part of one (0.5: two workers share a device)"
        )
    needed = min(workers, max(tickets, 1))
    cpus, group = engine.cpus_per_worker, engine.group
    return Processes(work, environments(needed, gpus=gpus, cpus=cpus, devices=devices, group=group))


def _devices() -> int:
    import torch

    return torch.cuda.device_count()
