"""The readout file: what the label lens needs without the model. Knows its hashes; knows nothing of lenses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from probe.store.places import Place, open_place
from probe.store.shard_format import as_bytes
from probe.store.tensor_files import TensorFile
from probe.values import StoreError

FILE = "readout.safetensors"


def read_readout(place: str | Path | Place, identity: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a store's readout, each tensor checked against the sha256 in the header.

    Raises:
        StoreError: the store has none.
        CorruptShard: its bytes are not those that were written, or belong to another store.
    """
    place = open_place(place)
    file = TensorFile.at(place, FILE)
    if file is None:
        raise StoreError(f"the store {place.url} has no {FILE}; run the study's capture again to write it")
    header = file.header()
    metadata = dict(header.metadata)
    if metadata.pop("identity_sha256", None) != identity:
        raise file.corrupt("it belongs to a store with another manifest")
    try:
        digests = json.loads(metadata.pop("sha256"))
    except (KeyError, ValueError, RecursionError) as error:
        raise file.corrupt("its header holds no sha256") from error
    tensors = dict(zip(header.tensors, file.tensors(list(header.tensors.values())), strict=True))
    for name, array in tensors.items():
        if hashlib.sha256(as_bytes(array)).hexdigest() != digests.get(name):
            raise file.corrupt(f"tensor {name!r} fails its sha256")
    metadata.pop("schema", None)
    return tensors, metadata
