"""Who may write a store. Knows file locks and leases; imports nothing heavy, so that it comes before a model."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

from probe.store.files import refusal
from probe.store.leases import STALE_SECONDS, Lease
from probe.store.places import LocalPlace, Place, open_place
from probe.values import DiskFull, ProbeError, StoreBusy, StoreError

ENTRIES = frozenset(
    {"manifest.json", "readout.safetensors", "plan", "shards", "failures", "runs", "seal.json"}
    | {"index.parquet", "tmp", "quarantine", ".lock"}
)
"""What may stand at the top of a store, with the locks and leases of writers that share it."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_HAS_FLOCK = importlib.util.find_spec("fcntl") is not None  # Windows has none


@dataclass(frozen=True)
class Share:
    """Writer ``index`` (from 0) of ``count`` that fill one store together: every ``count``-th shard of the plan."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """``"0/4"`` is the first of four writers.

        Raises:
            ProbeError: it is not i/n with 0 <= i < n.
        """
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ProbeError(f"--writer is i/n with 0 <= i < n, as 0/2 and 1/2 for two writers; found {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def file(self) -> str:
        """As it stands in file names."""
        return f"{self.index}of{self.count}"

    def holds(self, shard: int) -> bool:
        """Whether a planned shard is this writer's; shards stay whole, and with them the batches and the bits."""
        return shard % self.count == self.index


class _Hold(Protocol):
    @property
    def held(self) -> bool: ...

    def release(self) -> None: ...


@dataclass(eq=False)
class StoreLock:
    """The right to write one store, held until ``release`` or the end of the process.

    A local store is locked by the kernel, which frees it on death; where the file system has no locks, by a lease that
    its holder renews. An object store has no lock: two writers there cost time, never a row.
    """

    place: Place
    share: Share | None = None
    _holds: list[_Hold] = field(default_factory=list, repr=False)
    _released: bool = field(default=False, repr=False)

    @classmethod
    def acquire(cls, path: str | Path | Place, share: Share | None = None) -> StoreLock:
        """Lock the store at ``path``, making its directory where there is none; with a ``share``, beside the others.

        Raises:
            StoreBusy: another process holds the lock; its pid, host and start stand in the message.
            StoreError: the directory cannot be written, or holds other things than a store.
        """
        place = open_place(path)
        if not isinstance(place, LocalPlace):
            return cls(place, share)
        folder = place.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strange = sorted(entry.name for entry in folder.iterdir() if not _belongs(entry.name))
            if strange and not (folder / "manifest.json").exists():
                raise StoreError(
                    f"a store needs a directory of its own, and {folder} holds {strange[0]!r}; name another --store"
                )
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            holds = _locked(folder, share)
        except OSError as error:
            if isinstance(full := refusal(error, f"{folder}/.lock", 0, 0), DiskFull):
                raise full from error
            raise StoreError(
                f"the store {folder} cannot be written: {error.strerror}; name another --store (reading it needs no "
                "lock)"
            ) from error
        scratch = "tmp" if share is None else f"tmp/{share.file}"
        return cls(LocalPlace(folder, scratch), share, holds)

    @property
    def path(self) -> Path:
        """The folder of a local store."""
        return self.place.path if isinstance(self.place, LocalPlace) else Path(self.place.url)

    @property
    def held(self) -> bool:
        """Whether this lock still stands; a lease may have been lost to another writer."""
        return not self._released and all(hold.held for hold in self._holds)

    def clear_temps(self) -> int:
        """Remove what a dead writer left in this lock's scratch folder, and return how many files that were.

        What a guest that is still at work puts there meanwhile stays, or is written again.
        """
        if not isinstance(self.place, LocalPlace):
            return 0
        folder = self.place.path / self.place.scratch
        temps = sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else []
        files = [temp for temp in temps if not temp.is_dir()]
        for temp in temps:  # what lies in a folder comes before the folder
            if temp in files:
                temp.unlink(missing_ok=True)
            else:
                with suppress(OSError):
                    temp.rmdir()
        return len(files)

    def release(self) -> None:
        """Let another process write; a second call does nothing. The file stays: to unlink it would race."""
        self._released = True
        while self._holds:
            self._holds.pop().release()

    def __enter__(self) -> StoreLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(eq=False)
class _Flock:
    """A lock of the kernel on one open file."""

    descriptor: int | None

    @classmethod
    def take(cls, file: Path, *, shared: bool) -> _Flock:
        """Raises ``BlockingIOError`` where another process holds it."""
        import fcntl

        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    @property
    def held(self) -> bool:
        return self.descriptor is not None

    def sign(self) -> None:
        """Say in the file who holds it, for whoever is refused."""
        assert self.descriptor is not None
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, _signature(), 0)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def _locked(folder: Path, share: Share | None) -> list[_Hold]:
    if not _HAS_FLOCK:
        return [_leased(folder, share)]
    try:
        return list(_flocked(folder, share))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return [_leased(folder, share)]


def _flocked(folder: Path, share: Share | None) -> list[_Flock]:
    """The store's lock, alone or shared, and a shared writer's own."""
    whole = folder / ".lock"
    try:
        hold = _Flock.take(whole, shared=share is not None)
    except BlockingIOError:
        raise _busy(folder, next(_others(folder), whole)) from None
    if share is None:
        hold.sign()
        return [hold]
    own = folder / f".lock-{share.file}"
    try:
        for other in _others(folder, but=share.count):
            raise StoreBusy(
                f"the store {folder} is being filled by writers of another division ({_owner(other)} is "
                f"{other.name.removeprefix('.lock-').replace('of', '/')}); use the same n, or wait for them"
            )
        mine = _Flock.take(own, shared=False)
        mine.sign()
    except BlockingIOError:
        hold.release()
        raise _busy(folder, own, f"a writer {share} already") from None
    except (StoreBusy, OSError):
        hold.release()
        raise
    return [hold, mine]


def _others(folder: Path, but: int | None = None) -> Iterator[Path]:
    """Lock files of shared writers that are alive."""
    for file in sorted(folder.glob(".lock-*of*")):
        if file.name.endswith(f"of{but}"):
            continue
        try:
            _Flock.take(file, shared=True).release()
        except BlockingIOError:
            yield file


def _leased(folder: Path, share: Share | None) -> Lease:
    name = ".lease" if share is None else f".lease-{share.file}"
    against = ".lease-*" if share is None else ".lease"
    try:
        return Lease.take(folder / name, against, _signature())
    except FileExistsError as error:
        rule = f"another writer, by a lease that counts for {STALE_SECONDS:.0f} s after its holder died"
        raise _busy(folder, Path(error.filename), rule) from None


def _busy(folder: Path, file: Path, what: str = "another writer") -> StoreBusy:
    return StoreBusy(f"the store {folder} has {what} ({_owner(file)}); wait for it, or name another --store")


def _belongs(name: str) -> bool:
    return name in ENTRIES or name.startswith((".lock-", ".lease"))


def _signature() -> bytes:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now}).encode()


def _owner(file: Path) -> str:
    try:
        owner = json.loads(file.read_bytes())
        return f"pid {owner['pid']} on {owner['host']} since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written at this moment
        return "it has just started"
