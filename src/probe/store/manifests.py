"""Who a store belongs to. Knows the manifest's fields and which of them are identity; writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.store.places import Place, open_place
from probe.values import STREAMS, NoStore, StoreError, StoreMismatch, canonical_json, sha256_of

FILE = "manifest.json"
SCHEMA = "persona-acts/1"
DTYPES = ("float32", "bfloat16")

_NAME = re.compile(r"[\w-]+")
"""Positions name tensors, and the files of an export."""

_RECORDED_ONLY = frozenset({"created_by", "study", "parser", "parser_version"})
"""Kept for the reader; a run that differs here continues the same store (reparsing is allowed)."""


@dataclass(frozen=True)
class StreamLayout:
    """A stream: its layers in the order of the arrays (of ``resid`` points, else blocks) and its width if known."""

    name: str
    layers: tuple[int, ...]
    width: int | None


@dataclass(frozen=True)
class MomentsLayout:
    """How a store adds rows up: blocks of case families, the seed of their hash, and the width of its second moments.

    A stream no wider than ``covariance`` has all of its second moments, a wider one those of a random projection.
    """

    blocks: int
    seed: int
    covariance: int

    def axes(self, width: int) -> int:
        """In how many dimensions a stream of this width has its second moments."""
        return min(self.covariance, width)


@dataclass(frozen=True)
class Layout:
    """What the manifest says of every row: identity, residual points, dtype and options, in the order of the arrays.

    ``inner`` are the streams that were captured beside the residual. ``moments``: activations are added up over rows;
    None where every row is kept.
    """

    identity: str
    layers: tuple[int, ...]
    dtype: str | None
    positions: tuple[str, ...]
    d_model: int | None
    options: tuple[str, ...]
    inner: tuple[StreamLayout, ...] = ()
    moments: MomentsLayout | None = None

    @property
    def streams(self) -> tuple[StreamLayout, ...]:
        """Every stream, the residual first."""
        return StreamLayout("resid", self.layers, self.d_model), *self.inner


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """Read what the store itself needs from a manifest.

    Raises:
        StoreError: ``capture.layers`` or ``labels.options`` is missing, or one of the fields is of the wrong kind.
    """
    capture, labels = manifest.get("capture"), manifest.get("labels")
    layers = capture.get("layers") if isinstance(capture, Mapping) else None
    options = labels.get("options") if isinstance(labels, Mapping) else None
    if (
        not isinstance(layers, list)
        or not all(type(layer) is int for layer in layers)
        or len(set(layers)) < len(layers)
    ):
        raise StoreError(f"a manifest needs capture.layers, a list of different residual points; found {layers!r}")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options) or not options:
        raise StoreError(f"a manifest needs labels.options, a list of option ids; found {options!r}")
    assert isinstance(capture, Mapping)
    dtype = capture.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise StoreError(f"capture.dtype is one of {', '.join(DTYPES)} (float16 overflows); found {dtype!r}")
    positions, d_model = capture.get("positions") or [], capture.get("d_model")
    if not isinstance(positions, list) or not all(
        isinstance(name, str) and _NAME.fullmatch(name) for name in positions
    ):
        raise StoreError(f"capture.positions is a list of names of letters, digits, _ and -; found {positions!r}")
    if d_model is not None and (type(d_model) is not int or d_model < 1):
        raise StoreError(f"capture.d_model is the width of the residual stream, a whole number; found {d_model!r}")
    return Layout(
        identity=sha256_of(identity_of(manifest)),
        layers=tuple(layers),
        dtype=dtype,
        positions=tuple(positions),
        d_model=d_model,
        options=tuple(options),
        inner=_inner(capture.get("streams")),
        moments=_moments(capture.get("moments")),
    )


def _moments(entry: Any) -> MomentsLayout | None:
    """How rows are added up; None where the manifest says nothing of it."""
    if entry is None:
        return None
    keys = ("blocks", "seed", "covariance")
    if not isinstance(entry, Mapping) or set(entry) != set(keys) or any(type(entry[key]) is not int for key in keys):
        raise StoreError(f"capture.moments has {', '.join(keys)}, whole numbers; found {entry!r}")
    return MomentsLayout(**entry)


def _inner(streams: Any) -> tuple[StreamLayout, ...]:
    """The streams beside the residual, in the order in which they are packed; none where the manifest names none."""
    if streams is None:
        return ()
    if not isinstance(streams, Mapping) or not set(streams) <= set(STREAMS[1:]):
        raise StoreError(f"capture.streams maps {', '.join(STREAMS[1:])} to layers and width; found {streams!r}")
    found = []
    for name in sorted(streams, key=STREAMS.index):
        entry = streams[name]
        layers, width = (entry.get("layers"), entry.get("width")) if isinstance(entry, Mapping) else (None, None)
        rising = (
            isinstance(layers, list) and all(type(layer) is int for layer in layers) and sorted(set(layers)) == layers
        )
        if not rising or not layers or type(width) is not int or width < 1:
            raise StoreError(f"capture.streams.{name} has rising layers (blocks) and a width; found {entry!r}")
        found.append(StreamLayout(name, tuple(layers), width))
    return tuple(found)


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that no run may change.

    A model is its weights: where their hash is given, its id and revision are only a name (a directory may move).
    """
    identity = {key: value for key, value in manifest.items() if key not in _RECORDED_ONLY}
    model = identity.get("model")
    if isinstance(model, Mapping) and "weights_sha256" in model:
        identity["model"] = {key: value for key, value in model.items() if key not in ("id", "revision")}
    return identity


def normal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as it stands on disk: plain JSON values, with the schema first."""
    try:
        plain: dict[str, Any] = json.loads(canonical_json({"schema": SCHEMA} | dict(manifest)).encode())
    except (TypeError, ValueError) as error:
        raise StoreError(f"a manifest holds only plain JSON values: {error}") from error
    return {key: plain[key] for key in ("schema", *manifest) if key in plain}


def read_manifest(path: Path | Place) -> dict[str, Any]:
    """The manifest of the store at ``path``.

    Raises:
        StoreError: there is none, it cannot be read, or its schema is newer than this tool.
    """
    place = open_place(path)
    file = f"{place.url}/{FILE}"
    try:
        manifest = json.loads(place.read(FILE))
    except FileNotFoundError:
        raise NoStore(f"a store has a manifest.json, and {place.url} has none; check the path") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{file} is damaged ({error}); restore it from a copy") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        name, _, major = str(schema).partition("/")
        if name == SCHEMA.partition("/")[0] and major.isdecimal():
            raise StoreError(
                f"schema {schema} of {place.url} is newer than this tool ({SCHEMA}); upgrade persona-probe"
            )
        raise StoreError(f"{file} is no manifest of this tool: its schema is {schema!r}, not {SCHEMA!r}")
    assert isinstance(manifest, dict)
    return manifest


def check_same(path: str, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a run under another identity than the store's.

    Raises:
        StoreMismatch: names the first field that differs, both values and the remedy.
    """
    there, here = identity_of(stored), identity_of(asked)
    for field, old, new in _differences(there, here, ""):
        was, now = (f" ({name})" if (name := _model(m)) and field.startswith("model") else "" for m in (stored, asked))
        raise StoreMismatch(
            f"store {path} was captured with {field} {_short(old)}{was}; this run has {_short(new)}{now}. "
            f"Use --store NEW_DIR, or the original {field.split('.')[0].removesuffix('_sha256')}."
        )


_ABSENT = object()


def _differences(there: Any, here: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(key for key in here if key not in there)]:
            dotted = f"{field}.{key}" if field else key
            yield from _differences(there.get(key, _ABSENT), here.get(key, _ABSENT), dotted)
    elif there is _ABSENT or here is _ABSENT or canonical_json(there) != canonical_json(here):
        yield field, there, here


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = value if isinstance(value, str) and value else canonical_json(value)
    if len(text) >= 32 and not set(text) - set("0123456789abcdef"):
        return f"{text[:12]}.."
    return text if len(text) <= 100 else f"{text[:97]}..."


def _model(manifest: Mapping[str, Any]) -> str:
    model = manifest.get("model")
    if not isinstance(model, Mapping) or not model.get("id"):
        return ""
    return f"{model['id']}@{model['revision']}" if model.get("revision") else str(model["id"])
