"""The one pass: a prompt's prefill yields residuals and label logits, and goes on into the answer."""

from probe.capture.batching import PassInput, PassSettings
from probe.capture.decoding import run_pass, stream_pass
from probe.capture.donors import key_value_reads, token_reads
from probe.capture.planning import Job, JobPlanner, PlannedCells, Refusal, plan_jobs, shard_numbers
from probe.capture.sampling import Sampling
from probe.capture.shards import Capturer, FailedRow, ShardResult, capture_shard
from probe.capture.sweeps import sweep

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
    "key_value_reads",
    "plan_jobs",
    "run_pass",
    "shard_numbers",
    "stream_pass",
    "sweep",
    "token_reads",
]
