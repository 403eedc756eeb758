"""The one pass: a prompt's prefill yields residuals and label logits, and goes on into the answer."""

from probe.capture.batching import PassInput, PassSettings
from probe.capture.decoding import run_pass, stream_pass
from probe.capture.planning import Job, JobPlanner, PlannedCells, Refusal, plan_jobs
from probe.capture.sampling import Sampling
from probe.capture.shards import Capturer, FailedRow, ShardResult, capture_shard

__all__ = [
    "Capturer",
    "FailedRow",
    "Job",
    "JobPlanner",
    "PassInput",
    "PassSettings",
    "PlannedCells",
    "Refusal",
    "Sampling",
    "ShardResult",
    "capture_shard",
    "plan_jobs",
    "run_pass",
    "stream_pass",
]
