"""A store that is finished. Knows the list of its shards and their hashes; computes nothing of what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from probe.store.files import Entry
from probe.store.manifests import layout_of, read_manifest
from probe.store.places import Place, open_place
from probe.store.progress import coverage_of, read_failures, read_plans
from probe.store.shards import shards_in
from probe.values import MissingShard, StoreError, canonical_json

FILE = "seal.json"
SCHEMA = "persona-acts-seal/1"
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class SealedShard:
    """One shard as the seal lists it: the sha256 is that of the whole file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Seal:
    """What a finished store holds: its shards by name, their rows, and how far the plan was."""

    identity: str
    plan: str
    shards: tuple[SealedShard, ...]
    rows: int
    planned: int
    committed: int
    failed: int

    @property
    def file(self) -> bytes:
        """The seal as it stands on disk; the same store gives the same bytes."""
        content = {
            "schema": SCHEMA,
            "identity_sha256": self.identity,
            "plan": self.plan,
            "shards": [vars(shard) for shard in self.shards],
            "rows": self.rows,
            "coverage": {"planned": self.planned, "committed": self.committed, "failed": self.failed},
        }
        return canonical_json(content).encode()


def read_seal(place: Place) -> Seal | None:
    """The seal of a store; None where it has none.

    Raises:
        StoreError: the seal is damaged.
    """
    try:
        content = json.loads(place.read(FILE))
        if content["schema"] != SCHEMA:
            raise StoreError(
                f"{place.url}/{FILE} has schema {content['schema']!r}, not {SCHEMA!r}; upgrade persona-probe"
            )
        coverage = content["coverage"]
        return Seal(
            identity=content["identity_sha256"],
            plan=content["plan"],
            shards=tuple(SealedShard(s["name"], s["bytes"], s["sha256"]) for s in content["shards"]),
            rows=content["rows"],
            planned=coverage["planned"],
            committed=coverage["committed"],
            failed=coverage["failed"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{place.url}/{FILE} is damaged ({error!r}); `probe store repair` moves it out of the store"
        ) from error


def check_seal(seal: Seal, found: Mapping[str, Entry], where: str) -> None:
    """Refuse a sealed store that lacks a shard; ``found`` is the listing of its ``shards/``.

    Raises:
        MissingShard: names the first missing one and how many there are.
    """
    missing = [shard.name for shard in seal.shards if f"{shard.name}.safetensors" not in found]
    if missing:
        raise MissingShard(
            f"the store {where} is sealed with {len(seal.shards)} shards and lacks {len(missing)} of them (first: "
            f"{missing[0]}.safetensors); restore them from a copy, or run `probe store repair {where}`, which takes "
            "the seal off, and the same study again, which captures exactly their rows"
        )


def require_unsealed(place: Place, purpose: str) -> None:
    """Refuse to write into a finished store.

    Raises:
        StoreError: the store is sealed.
    """
    if FILE in place.list(""):
        raise StoreError(
            f"the store {place.url} is sealed, and this run needs {purpose}; run `probe store unseal {place.url}` "
            "first, or name another --store"
        )


def seal_store(path: str | Path | Place, *, incomplete: bool = False, leaving_out: Collection[str] = ()) -> Seal:
    """Seal a store: from now on a lost shard is an error, and nothing more is written into it. Reads every byte.

    The store's lock is the caller's. With ``incomplete``, rows that are pending or failed do not hinder it. Shards that
    are about to leave the store can be left out.

    Raises:
        StoreError: rows of the latest plan are missing.
    """
    place = open_place(path)
    identity = layout_of(read_manifest(place)).identity
    shards = [shard for shard in shards_in(place, identity) if shard.name not in leaving_out]
    plans = read_plans(place)
    if not plans:
        raise StoreError(f"the store {place.url} has no plan yet: there is nothing to seal")
    committed = {key for shard in shards for key in shard.keys}
    coverage = coverage_of({row.cell.row_id: row for row in plans[-1].rows}, committed, read_failures(place))
    if coverage.committed < coverage.planned and not incomplete:
        raise StoreError(
            f"a seal says that a store is complete, and {place.url} has {coverage}; run the study again, or seal it as "
            "it is with --incomplete"
        )
    sealed = tuple(_sealed(place, shard.name) for shard in shards)
    seal = Seal(identity, plans[-1].hash, sealed, len(committed), coverage.planned, coverage.committed, coverage.failed)
    place.write(FILE, [seal.file])
    return seal


def _sealed(place: Place, name: str) -> SealedShard:
    size, digest = file_digest(place, f"shards/{name}.safetensors")
    return SealedShard(name, size, digest)


def file_digest(place: Place, name: str) -> tuple[int, str]:
    """Size and hex sha256 of a file, read in pieces."""
    folder, _, base = name.rpartition("/")
    entry = place.list(folder)[base]
    digest, buffer = hashlib.sha256(), bytearray(min(_CHUNK, entry.size))
    for start in range(0, entry.size, _CHUNK):
        piece = memoryview(buffer)[: min(_CHUNK, entry.size - start)]
        place.ranges(name, [(start, piece)], entry)
        digest.update(piece)
    return entry.size, digest.hexdigest()
