"""Writers beside the one that holds the lock, for processes that got their work from it. Knows manifests and rows.

Correctness needs no lock: a shard's name is its content, and it appears whole or not at all. The lock is for people, so
that no two runs do the same work; whoever runs a part of the holder's work writes beside it.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.store.locks import StoreLock
from probe.store.manifests import FILE as MANIFEST
from probe.store.manifests import check_same, layout_of, normal, read_manifest
from probe.store.places import LocalPlace, Place, open_place
from probe.store.runs import utc_now
from probe.store.writer import StoreWriter
from probe.values import PlannedRow, StoreError


def open_guest(path: str | Path | Place, manifest: Mapping[str, Any]) -> GuestWriter:
    """Open a store beside the holder of its lock, to commit rows that the holder has planned.

    Raises:
        StoreMismatch: the store has another identity.
        StoreError: there is no store.
    """
    place = open_place(path)
    try:
        found = place.read(MANIFEST)
    except OSError as error:
        raise StoreError(f"{place.url} holds no store ({error.strerror or error})") from error
    asked = normal(manifest)
    check_same(place.url, read_manifest(place), asked)
    if isinstance(place, LocalPlace):
        place = LocalPlace(place.path, f"tmp/{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
        (place.path / place.scratch).mkdir(parents=True)
    return GuestWriter(place, layout_of(asked), StoreLock(place, None, [_Invitation(place, found)]))


class GuestWriter(StoreWriter):
    """A writer without a plan of its own; made by ``open_guest``."""

    def follow(self, rows: Iterable[PlannedRow]) -> tuple[PlannedRow, ...]:
        """Be ready to commit these rows of the holder's plan; returns those that nobody has committed by now."""
        self.refresh()
        self._planned = {row.cell.row_id: row for row in rows}
        return tuple(row for row in self._planned.values() if (row.cell.row_id, row.prompt_sha) not in self._committed)

    def pause_run(self) -> None:
        """Say in the record of this process that it has done all that it was given so far; more may follow."""
        self._record_run(exit_status=0, ended=utc_now())


@dataclass(eq=False)
class _Invitation:
    """The manifest that a guest found; while it stands, the guest may write: a store begun anew has no guests."""

    place: Place
    manifest: bytes

    @property
    def held(self) -> bool:
        try:
            return self.place.read(MANIFEST) == self.manifest
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Nothing was taken."""
