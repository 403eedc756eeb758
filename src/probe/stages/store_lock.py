"""A store taken for one run, and emptied for a fresh one. Knows folders; captures nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probe.store import Share, StoreLock
from probe.store.locks import ENTRIES
from probe.store.places import LocalPlace, Place, open_place


@contextmanager
def locked(path: str | Path, share: Share | None) -> Iterator[StoreLock]:
    """The lock of a store; one that was made for a run that then saved nothing is removed again.

    It stays where other writers may be at work in it.
    """
    place = open_place(path)
    local = place.path if isinstance(place, LocalPlace) and share is None else None
    made = [] if local is None else [folder for folder in (local, *local.parents) if not folder.exists()]
    with StoreLock.acquire(place, share) as lock:
        try:
            yield lock
        except BaseException:
            if local is not None and made and not any((local / "shards").glob("*.safetensors")):
                shutil.rmtree(local)
                with suppress(OSError):  # another run may have put its store beside this one meanwhile
                    for folder in made[1:]:
                        folder.rmdir()
            raise


def clear(place: Place) -> None:
    """Remove a store's entries, and nothing else that may lie in the folder; the lock stays held."""
    for name in sorted(ENTRIES - {".lock"}):
        if isinstance(place, LocalPlace) and (place.path / name).is_dir():
            shutil.rmtree(place.path / name)
        for file in place.list(name):
            place.remove(f"{name}/{file}")
    for name in ENTRIES & place.list("").keys() - {".lock"}:
        place.remove(name)
