"""Tree records -> their prompts without a pixel: the question as it is asked, the pictures by the
sizes that their headers tell.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from srpo_jax.data_pipelines.images import image_size
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.image_layout import Grid
from srpo_jax.models.hf.prompt_encoder import PromptEncoder
from srpo_jax.models.inputs import PromptOutline
from srpo_jax.pack.byte_cache import CACHE_BYTES, ByteCache


class Prompts:
    """encoder: how questions are asked. Thread-safe. The sizes of pictures are kept by their
    SHA-256, as many questions share a picture."""

    def __init__(self, encoder: PromptEncoder, *, cache_bytes: int = CACHE_BYTES):
        self.encoder = encoder
        self._grids = ByteCache(cache_bytes)
        # A fast tokenizer may refuse a second thread while one changes its settings.
        self._tokenizer_lock = threading.Lock()

    def outline(self, record: dict[str, Any]) -> PromptOutline:
        """Of a tree record. Raises RecordError, which names the tree, for a prompt that cannot be
        written and for a picture without a good header."""
        with named(record["id"]) as what:
            grids = [self._grid(image, what) for image in record["images"]]
            with self._tokenizer_lock:
                encoder = self.encoder.of_category(record["category"])
                return encoder.outline(record["question"], grids)

    def _grid(self, image: dict[str, Any], what: str) -> Grid:
        def read():
            size = image_size(image["data"], what=f"{what}: {image['name']}")
            return self.encoder.processor.images.grid(*size)

        return self._grids.get(image["sha256"], read, lambda _: 256)


@contextlib.contextmanager
def named(tree_id: str) -> Iterator[str]:
    """In a `with`: errors that do not know the tree get its name."""
    what = f"tree {tree_id!r}"
    try:
        yield what
    except RecordError:
        raise
    except UserError as e:
        name = "" if what in str(e) else f"{what}: "
        raise RecordError(f"{name}{e}") from None
