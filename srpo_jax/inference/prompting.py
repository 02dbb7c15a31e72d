"""From the sections `prompt` and `format` of a config to how a policy is asked."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any, NamedTuple

from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.prompt import BARE, make_prompt
from srpo_jax.files import file_sha256
from srpo_jax.inference.configured_format import configured_format
from srpo_jax.models.blocks.config import Family
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import PromptEncoder, check_not_baked, processor_digest


class Asking(NamedTuple):
    """encoder: how questions are asked. form: the path format. digest: 16 hex digits that name
    both. about: the prompt in a few readable values, and the digest of the policy's own files.
    outlines: names all that decides how many tokens and patches a prompt has, and where. folder: of
    the policy.
    """

    encoder: PromptEncoder
    form: PathFormat
    digest: str
    about: dict[str, Any]
    outlines: str
    folder: pathlib.Path


def load_asking(
    cfg: Config, folder: str | pathlib.Path, family: str | Family = "", *, bare: bool = False
) -> Asking:
    """How cfg.prompt asks the policy in `folder`. bare: by the question alone, whatever cfg says.

    A folder whose chat template has a prompt in it is asked the bare question. Raises UserError if
    cfg has another prompt for it, for demonstrations that cannot be read, and as
    Processor.from_dir.
    """
    form = configured_format(cfg.format)
    told = cfg.prompt.system or cfg.prompt.demos or cfg.prompt.instruction not in ("auto", "none")
    baked = check_not_baked(folder, bool(told) and not bare)
    pixels = cfg.data.max_pixels
    processor = Processor.from_dir(
        folder, family, form.markers, form.opening, cfg.format.open, pixels
    )
    prompt = BARE if bare or baked else make_prompt(form, **arguments(make_prompt, cfg.prompt))
    encoder = PromptEncoder(processor, prompt)
    digest, files = encoder.digest(folder, cfg.format), processor_digest(folder)
    if pixels:
        digest, files = (_short(f"{name} max_pixels {pixels}") for name in (digest, files))
    about = {**encoder.prompt.describe(), "processor": files}
    network = file_sha256(pathlib.Path(folder) / "config.json")  # its patches and positions
    named = f"{digest} {network} {cfg.model.family}"
    return Asking(encoder, form, digest, about, _short(named), pathlib.Path(folder))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
