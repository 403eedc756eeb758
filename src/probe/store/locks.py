"""One writer at a time. Knows the kernel's file lock; imports nothing heavy, so that it comes before a model."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from probe.values import StoreBusy, StoreError

ENTRIES = frozenset(
    {"manifest.json", "readout.safetensors", "plan", "shards", "failures", "runs", "seal.json"}
    | {"index.parquet", "tmp", "quarantine", ".lock"}
)
"""What may stand at the top of a store."""


@dataclass(eq=False)
class StoreLock:
    """The right to write one store, held until ``release`` or the end of the process; the kernel frees it on death."""

    path: Path
    _descriptor: int | None = field(repr=False)

    @classmethod
    def acquire(cls, path: str | Path) -> StoreLock:
        """Lock the store at ``path``, making its directory where there is none.

        Raises:
            StoreBusy: another process holds the lock; its pid, host and start stand in the message.
            StoreError: the directory cannot be written, or holds other things than a store.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            strange = sorted(entry.name for entry in path.iterdir() if entry.name not in ENTRIES)
            if strange and not (path / "manifest.json").exists():
                raise StoreError(
                    f"a store needs a directory of its own, and {path} holds {strange[0]!r}; name another --store"
                )
            descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(
                f"the store {path} cannot be written: {error.strerror}; name another --store (reading it needs no lock)"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 4096)
            os.close(descriptor)
            raise StoreBusy(
                f"the store {path} has another writer ({_owner(owner)}); wait for it, or name another --store"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"the file system of {path} has no file locks ({error.strerror}); put the store on a local disk"
            ) from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, line.encode(), 0)
        return cls(path, descriptor)

    @property
    def held(self) -> bool:
        """Whether this lock still stands."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let another process write; a second call does nothing. The file stays: to unlink it would race."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> StoreLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _owner(line: bytes) -> str:
    try:
        owner = json.loads(line)
        return f"pid {owner['pid']} on {owner['host']} since {owner['started']}"
    except (ValueError, KeyError, TypeError):  # it is being written at this moment
        return "it has just started"
