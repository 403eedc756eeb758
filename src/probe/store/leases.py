"""A file that says who writes, where the file system has no locks. Knows heartbeats; knows nothing of stores."""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from probe.store.files import write_all

BEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
"""A lease that was not renewed for this long belongs to a dead process and is taken over. Its holder stops writing
when it finds itself replaced, so a process that was only asleep does no harm."""


@dataclass(eq=False)
class Lease:
    """A file made with ``O_EXCL`` and rewritten every ``BEAT_SECONDS`` by a daemon thread, until it is released.

    Ages are compared by the file system's own clock: two machines need not agree on the time.
    """

    file: Path
    content: bytes
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @classmethod
    def take(cls, file: Path, against: str, signature: bytes) -> Lease:
        """Hold ``file``, unless a living lease among the files that match ``against`` beside it stands in the way.

        Raises:
            FileExistsError: one does; ``filename`` names it.
        """
        lease = cls(file, signature[:-1] + b', "token": "%s"}' % secrets.token_hex(8).encode())
        for attempt in range(2):
            try:
                lease._create()
                break
            except FileExistsError:
                if attempt or not _clear_stale(file):
                    raise FileExistsError(None, "leased", str(file)) from None
        for other in sorted(file.parent.glob(against)):
            if other != file and not _clear_stale(other):
                lease.release()
                raise FileExistsError(None, "leased", str(other))
        threading.Thread(target=lease._beat, name="store lease", daemon=True).start()
        return lease

    @property
    def held(self) -> bool:
        """Whether the lease is still this process's."""
        return not self._stop.is_set() and self._is_own()

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._is_own():
            self.file.unlink(missing_ok=True)

    def _create(self) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, self.content)
        finally:
            os.close(descriptor)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            if not self._is_own():
                return
            with suppress(OSError):  # one missed beat is no death; a lost lease is noticed by `held`
                descriptor = os.open(self.file, os.O_WRONLY)
                try:
                    write_all(descriptor, self.content)  # the file system's clock sets the time of a write
                finally:
                    os.close(descriptor)

    def _is_own(self) -> bool:
        try:
            return self.file.read_bytes() == self.content
        except OSError:
            return False


def _clear_stale(file: Path) -> bool:
    """Remove a lease whose holder is dead; False where it lives. Of two that try, one gets the file."""
    try:
        seen = file.read_bytes()
        if _now(file.parent) - file.stat().st_mtime < STALE_SECONDS:
            return False
        taken = file.with_name(f".lease.{secrets.token_hex(4)}")
        file.rename(taken)
    except FileNotFoundError:
        return True
    renewed = taken.read_bytes() != seen
    if renewed:  # a new holder came between the look and the rename: it gets its lease back
        with suppress(FileExistsError):
            os.link(taken, file)
    taken.unlink()
    return not renewed


def _now(folder: Path) -> float:
    """The time by the clock of the file system itself."""
    probe = folder / f".lease.{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"?")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
