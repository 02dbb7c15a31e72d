"""Places for the tests of checkpoints: a small file system, a disk, a bucket."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.support.checkpoint_places import CheckpointPlace, InBucket, OnDisk, bucket_place


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB; skips where this user may not make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], capture_output=True
    )
    if made.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path) -> Iterator[CheckpointPlace]:
    """No checkpoints, in each kind of place."""
    if request.param == "disk":
        yield OnDisk(tmp_path / "checkpoints")
    else:
        with bucket_place() as found:
            yield found


@pytest.fixture
def bucket() -> Iterator[InBucket]:
    """No checkpoints, in a bucket."""
    with bucket_place() as found:
        yield found
