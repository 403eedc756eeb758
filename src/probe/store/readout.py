"""The readout file: what the label lens needs without the model. Knows its hashes; knows nothing of lenses."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from probe.store.shard_format import as_bytes, corrupt, read_header
from probe.store.shards import read_tensor
from probe.values import StoreError

FILE = "readout.safetensors"


def read_readout(path: Path, identity: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a store's readout, each tensor checked against the sha256 in the header.

    Raises:
        StoreError: the store has none.
        CorruptShard: its bytes are not those that were written, or belong to another store.
    """
    file = path / FILE
    if not file.exists():
        raise StoreError(f"the store {path} has no {FILE}; run the study's capture again to write it")
    header = read_header(file)
    metadata = dict(header.metadata)
    if metadata.pop("identity_sha256", None) != identity:
        raise corrupt(file, "it belongs to a store with another manifest")
    try:
        digests = json.loads(metadata.pop("sha256"))
    except (KeyError, ValueError, RecursionError) as error:
        raise corrupt(file, "its header holds no sha256") from error
    tensors = {}
    with io.FileIO(file) as opened:
        for name, spec in header.tensors.items():
            tensors[name] = read_tensor(opened, spec, file)
            if hashlib.sha256(as_bytes(tensors[name])).hexdigest() != digests.get(name):
                raise corrupt(file, f"tensor {name!r} fails its sha256")
    metadata.pop("schema", None)
    return tensors, metadata
