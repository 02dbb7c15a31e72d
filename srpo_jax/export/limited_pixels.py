"""data.max_pixels written into an export: who loads it shows pictures as the run did."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.image_settings import FILES
from srpo_jax.models.hf.processor import Processor

PROBES = ((60, 40), (336, 336), (1920, 1080), (4000, 3000), (700, 3500))  # pixels


def limiting(
    source: str, config: ModelConfig, max_pixels: int, then: Callable[[pathlib.Path], None] | None
) -> Callable[[pathlib.Path], None]:
    """What an export of the policy in `source` does with its complete folder: write how large
    pictures may be, then the check `then`."""
    ours = Processor.from_dir(source, config.family, max_pixels=max_pixels)

    def run(folder: pathlib.Path) -> None:
        write_settings(folder, ours.limited)
        theirs = Processor.from_dir(folder, config.family)
        if any(theirs.images.grid(*size) != ours.images.grid(*size) for size in PROBES):
            raise UserError(f"{folder}: its image processor does not take data.max_pixels")
        if then is not None:
            then(folder)

    return run


def write_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Changes settings of the image processor in the files of a folder that have any."""
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        # transformers 5 saves it inside processor_config.json, and reads it from there first.
        inner = content if name == FILES[0] else content.get("image_processor")
        if isinstance(inner, dict):
            # Older files say it once more beside `size`, and then that counts.
            known = {key: value for key, value in settings.items() if key in inner}
            inner.update(known or settings)
            if "size" in settings:
                inner["size"] = settings["size"]
            write_json(path, content)
