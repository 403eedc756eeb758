"""What can go wrong for a caller, each with the exit status of the command line."""

from __future__ import annotations


class ProbeError(Exception):
    """A refusal in one sentence: the rule, what was found, and the remedy."""

    exit_status = 1


class StudyError(ProbeError):
    """A study, persona or case file breaks a rule; the message starts with ``file:line:column``."""


class ModelError(ProbeError):
    """A model cannot be loaded, or does not behave as a decoder must."""


class LabelError(ProbeError):
    """A label letter is not one token at the site where it is read."""


class RowRefused(ProbeError):
    """One cell cannot be captured for good (its prompt exceeds the context, ...); the others run."""

    def __init__(self, kind: str, reason: str, prompt_sha: str = "") -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.prompt_sha = prompt_sha


class StoreError(ProbeError):
    """A store cannot be opened or written as asked."""


class NoStore(StoreError):
    """Nothing that was written by this tool lies where a store was looked for."""


class StoreMismatch(StoreError):
    """A store was captured under another identity (model, template, capture settings)."""


class NewerVersion(StoreError):
    """Something in a store was written by a newer version of this tool: it is sound, and must not be repaired."""


class ChangedPrompt(StoreError):
    """A persona or case was edited under the same id since its rows were captured."""


class CorruptShard(StoreError):
    """A shard's bytes are not those that were committed."""


class MissingShard(StoreError):
    """A sealed store lacks a shard that its seal lists."""


class StoreChanged(StoreError):
    """A file of a store changed between two reads of it: what was read together would not belong together."""


class DiskFull(StoreError):
    """The disk is full; every row reported as saved is safe."""

    exit_status = 4


class StoreBusy(StoreError):
    """Another process writes this store."""

    exit_status = 5


class ProbeWarning(UserWarning):
    """What a result leaves out, with counts; nothing that is returned is wrong."""
