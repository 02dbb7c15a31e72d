"""`transformers serve` on 127.0.0.1, for a folder with a model."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

from srpo_jax.launch.local import free_port
from tests.support import SUPPORT

NEEDED = ("torch", "accelerate", "fastapi", "uvicorn", "openai")  # packages


@contextlib.contextmanager
def serving(folder: pathlib.Path, tmp_path: pathlib.Path, *, plain: bool):
    """The address of a running server. plain: transformers' own command; else see the script."""
    command = [sys.executable]
    command += (
        ["-m", "transformers.cli.transformers"]
        if plain
        else [str(SUPPORT / "serve_without_torchvision.py")]
    )
    port = free_port()
    command += [
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    cache = tmp_path / "cache"
    cache.mkdir()  # /v1/models fails where it does not exist
    log = tmp_path / "log"
    with open(log, "wb") as out:
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while not healthy(url):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        try:
            yield url
        except Exception as error:
            raise AssertionError(log.read_text()[-3000:]) from error
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
