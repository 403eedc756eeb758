"""A prefix of an object store, through fsspec. Knows retries, versions and refusals; knows nothing of the bytes.

An object store has no rename and needs none: a PUT makes a whole object visible or nothing, and when it returns the
object is durable. Credentials and endpoints come from where fsspec's file systems take them (``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ``FSSPEC_S3_...``).
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from probe.store.files import Bytes, Entry
from probe.values import StoreChanged, StoreError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TRIES = 4
"""How often one operation is tried; most file systems retry inside each of these too."""

PAUSE_SECONDS = 0.25
"""Before the first repetition; doubled before each further one."""

AT_ONCE = 64 * 2**20
"""Bytes of ranges that are asked for together: what a read holds beside its result."""

_REMOTE_IO = getattr(errno, "EREMOTEIO", errno.EIO)
_TRANSIENT = frozenset(
    {errno.EIO, _REMOTE_IO, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED}
    | {errno.ECONNABORTED, errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH}
)
_VERSIONS = ("ETag", "etag", "generation", "version_id", "sha256", "blob_id", "md5", "LastModified", "mtime", "created")
"""What file systems call the mark of an object's content, the best first."""

_FOREIGN = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"), ("httpx", "HTTPError"))
"""Errors of client libraries that are no ``OSError``: missing credentials, an endpoint that does not exist, ..."""

T = TypeVar("T")


def open_remote(url: str, options: Mapping[str, Any] | None = None) -> RemotePlace:
    """The place at ``s3://bucket/prefix``, ``memory://name`` or another URL of fsspec.

    ``options`` are the file system's own (``{"endpoint_url": ...}``), where the environment does not give them.

    Raises:
        StoreError: fsspec knows no such scheme, or the package that serves it is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise StoreError(f'{url} needs fsspec; install it: pip install "persona-probe[remote]"') from None
    settings = {"use_listings_cache": False} | dict(options or {})
    scheme = url.partition("://")[0]
    try:
        files, root = url_to_fs(url, **settings)
    except ImportError as error:
        remedy = 'pip install "persona-probe[remote]"' if scheme == "s3" else str(error)
        raise StoreError(f"{url} needs a package that serves {scheme}:// and is not installed: {remedy}") from error
    except ValueError as error:
        raise StoreError(f"{url} is no URL of a store ({error}); s3://, memory:// and file:// are") from error
    return RemotePlace(url.rstrip("/"), files, root.rstrip("/"))


@dataclass(frozen=True, eq=False)
class RemotePlace:
    """A prefix of an object store.

    Every operation is tried up to ``TRIES`` times where the service fails or is silent, and once where it refuses.
    What cannot be done is a ``StoreError`` in one sentence; a missing object stays a ``FileNotFoundError``.
    """

    url: str
    files: AbstractFileSystem
    root: str
    pause: float = PAUSE_SECONDS

    def list(self, folder: str) -> dict[str, Entry]:
        """Objects directly under ``folder`` by base name; none where there is no such prefix."""
        path = self._at(folder)
        try:
            found = self._try("list", folder, lambda: self.files.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        prefix = f"{path}/"
        infos = (info for info in found if info["type"] == "file" and info["name"].startswith(prefix))
        entries = {info["name"].removeprefix(prefix): self._entry(info) for info in infos}
        return {name: entry for name, entry in entries.items() if name and "/" not in name}

    def read(self, name: str) -> bytes:
        """A whole object, as it stands now."""
        return bytes(self._try("read", name, lambda: self.files.cat_file(self._at(name))))

    def ranges(self, name: str, spans: Sequence[tuple[int, memoryview]], expect: Entry | None = None) -> None:
        """Fill each buffer from its offset; then make sure that the object was the ``expect``-ed one all the time.

        ``expect`` was taken before the first byte and is compared after the last, so bytes of two versions never meet.

        Raises:
            StoreChanged: the object is another one by now; what the buffers hold must not be used.
            EOFError: the object ends before a span does.
        """
        try:
            for part in _portions(spans):
                self._fill(name, part)
        except (EOFError, OSError, StoreError):
            if expect is not None:
                self._require(name, expect)  # an object that was replaced by a shorter one has changed, not ended
            raise
        if expect is not None:
            self._require(name, expect)

    def write(self, name: str, parts: Sequence[Bytes], *, replace: bool = True) -> None:
        """Write a whole object with one PUT (fsspec makes several uploads of a large one, which appear as one).

        Where ``replace`` is false the PUT is conditional (``If-None-Match: *``) if the service knows that.
        """
        content = b"".join(parts)
        if replace:
            self._try("write", name, lambda: self.files.pipe_file(self._at(name), content))
            return
        tries = 0

        def put() -> None:
            nonlocal tries
            tries += 1
            self.files.pipe_file(self._at(name), content, mode="create")

        try:
            self._try("write", name, put)
        except FileExistsError:
            if tries == 1 or self.read(name) != content:  # else an answer was lost, and the object is our own
                raise
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            if name.rpartition("/")[2] in self.list(name.rpartition("/")[0]):  # no conditional PUT there
                raise FileExistsError(errno.EEXIST, "exists", self._path(name)) from None
            self.write(name, [content])

    def move(self, name: str, to: str) -> None:
        """Copy an object to another name, then delete the old one."""
        self._try("move", name, lambda: self.files.cp_file(self._at(name), self._at(to)))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Delete an object."""
        self._try("remove", name, lambda: self.files.rm_file(self._at(name)))

    def make(self) -> None:
        """Nothing: prefixes need not exist."""

    def _fill(self, name: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        starts = [start for start, _ in spans]
        stops = [start + len(target) for start, target in spans]
        paths = [self._at(name)] * len(spans)
        blocks = self._try("read", name, lambda: self.files.cat_ranges(paths, starts, stops, on_error="raise"))
        for (start, target), block in zip(spans, blocks, strict=True):
            if len(block) != len(target):
                raise EOFError(f"{self._path(name)} ends at byte {start + len(block)}")
            target[:] = block

    def _require(self, name: str, expect: Entry) -> None:
        key = expect.version.partition("=")[0]
        info = self._try("read", name, lambda: self.files.info(self._at(name)))
        found = _version(info, (key,))
        if info["size"] not in (None, expect.size) or (found and expect.version and found != expect.version):
            raise StoreChanged(
                f"{self._path(name)} changed while it was read ({expect.version} became {found}); open the store "
                "again, and verify it if nobody writes it: a shard never changes once it is committed"
            )

    def _entry(self, info: Mapping[str, Any]) -> Entry:
        size = info["size"] if info["size"] is not None else self.files.size(info["name"])
        return Entry(int(size or 0), _version(info, _VERSIONS))

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _try(self, verb: str, name: str, operation: Callable[[], T]) -> T:
        for attempt in range(1, TRIES + 1):
            try:
                with _as_os_error():
                    return operation()
            except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                if verb in ("write", "move") and isinstance(error, FileNotFoundError):
                    raise StoreError(f"cannot {verb} {self._path(name)}: {_said(error)}; create the bucket") from error
                raise
            except NotImplementedError as error:
                raise StoreError(f"{self.url} can only be read: its file system cannot {verb}") from error
            except PermissionError as error:
                raise StoreError(
                    f"the service refuses to {verb} {self._path(name)} ({_said(error)}); check the credentials and "
                    "what they may do there"
                ) from error
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    raise
                if not _transient(error):
                    raise StoreError(f"cannot {verb} {self._path(name)}: {_said(error)}") from error
                if attempt == TRIES:
                    raise StoreError(
                        f"cannot {verb} {self._path(name)}: the service failed {TRIES} times ({_said(error)}); what "
                        "was reported as saved is safe, run the same command again when it answers"
                    ) from error
                time.sleep(self.pause * 2 ** (attempt - 1))
        raise AssertionError("the last try returns or raises")


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Errors of client libraries become an ``OSError`` without a number, which is not tried again: they did so."""
    foreign = tuple(getattr(sys.modules[module], name) for module, name in _FOREIGN if module in sys.modules)
    try:
        yield
    except OSError:
        raise
    except foreign as error:
        raise OSError(str(error) or type(error).__name__) from error


def _transient(error: OSError) -> bool:
    return isinstance(error, TimeoutError | ConnectionError) or error.errno in _TRANSIENT


def _said(error: OSError) -> str:
    return str(error.strerror or error or type(error).__name__).strip().rstrip(".") or type(error).__name__


def _version(info: Mapping[str, Any], keys: Sequence[str]) -> str:
    """``key=value`` of the first of ``keys`` that a listing gives; empty where it gives none."""
    for key in keys:
        value = info.get(key)
        if value:
            return f"{key}={value.timestamp() if isinstance(value, datetime) else value}"
    return ""


def _portions(spans: Sequence[tuple[int, memoryview]]) -> Iterator[list[tuple[int, memoryview]]]:
    """Spans with something to fill, together up to ``AT_ONCE`` bytes."""
    part: list[tuple[int, memoryview]] = []
    held = 0
    for start, target in spans:
        for cut in range(0, len(target), AT_ONCE):
            piece = target[cut : cut + AT_ONCE]
            if part and held + len(piece) > AT_ONCE:
                yield part
                part, held = [], 0
            part.append((start + cut, piece))
            held += len(piece)
    if part:
        yield part
