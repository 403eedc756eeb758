"""Label reads on disk, each part under the hash of everything that it depends on. Knows files; runs no model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from probe.capture import PassInput
from probe.stages.steer_reads import Reads, SweepOrder
from probe.store.files import write_result
from probe.values import sha256_of

SUFFIX = "-steer-reads"
VERSION = 1
"""Changes when the same order would be read otherwise: reads of another version are not taken over."""


class KeptReads:
    """A folder with one file for each part of a sweep: a part is whole or not there.

    ``model`` names the weights and the numerics that reads depend on. Reads of several residual points at once are few
    and large, and are not kept.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self._model = model

    def load(self, order: SweepOrder) -> Reads | None:
        """The reads of an order; None where they are not kept, or not as they were written."""
        try:
            content = self._file(order).read_bytes()
        except FileNotFoundError:
            return None
        digest, content = content[: hashlib.sha256().digest_size], content[hashlib.sha256().digest_size :]
        if hashlib.sha256(content).digest() != digest:
            return None
        try:
            return Reads(**load(content))
        except (SafetensorError, TypeError):
            return None

    def save(self, order: SweepOrder, reads: Reads) -> None:
        """Keep the reads of an order.

        Raises:
            StoreError: the system refused to write them.
        """
        if len(order.points) > 1:
            return
        content = save(reads.arrays())
        write_result(self._file(order), [hashlib.sha256(content).digest(), content])

    def clear(self) -> None:
        """Remove the reads, and nothing else that may lie in the folder."""
        for file in self.folder.glob("*.reads"):
            file.unlink(missing_ok=True)

    def _file(self, order: SweepOrder) -> Path:
        points = [(point.stream, point.layer) for point in order.points]
        whole = [VERSION, self._model, [_row(row) for row in order.rows], _arms(order), points]
        against = [[_row(row) for row in rows] for rows in order.against]
        return self.folder / f"{sha256_of([*whole, against])[:32]}.reads"


def _row(row: PassInput) -> list[object]:
    """All of a row that its reads depend on."""
    return [row.token_ids, row.given, row.labels.ids, row.persona_end, row.case_tokens, row.persona_tokens]


def _arms(order: SweepOrder) -> list[str]:
    """A hash for the arms of each row, which are often one list for all."""
    different = {id(arms): arms for arms in order.arms}
    hashes = {one: sha256_of([[edit.sha256 for edit in edits] for edits in arms]) for one, arms in different.items()}
    return [hashes[id(arms)] for arms in order.arms]
