"""A local server that speaks S3, for tests. Knows moto and the variables that point clients at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from probe.store.places_remote import open_remote

BUCKET = "s3://captures"


@contextmanager
def served() -> Iterator[str]:
    """The URL of an empty bucket, while the server runs; skips where its packages are not installed."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "someone")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "something")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_MAX_ATTEMPTS", "1")  # the repetitions that are tested are the store's own
            files = open_remote(f"{BUCKET}/x").files
            files.clear_instance_cache()
            files = open_remote(f"{BUCKET}/x").files
            if not files.exists("captures"):
                files.mkdir("captures")
            yield BUCKET
    finally:
        server.stop()
