"""Is the export what was trained, and does it compute the same? For `srpo export --verify`.

Two questions, asked of the folder as it lies on the disk, before it gets its name:
* every tensor, read back, is the trained one, rounded to the dtype of its file: bit for bit;
* the logits of a question with a picture, computed from the folder by transformers' own model (by
  our importer and model where torch is not installed), are those that our model computes from the
  trained parameters.
Both sides compute in float32, on numbers rounded to the files' dtype: what rounding costs is no
error of the export, and leaving it out keeps the tolerance tight for bfloat16 files too.
"""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from srpo_jax.errors import one_line
from srpo_jax.export.hf_checkpoint import Edit, values_on_disk
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.hf import load
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.tensor_match import shorten
from srpo_jax.models.inputs import EncodedPrompt, causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix

QUESTION = "What does this picture show?"
# Times the logits' root mean square, or 1 if that is less. Two correct float32 programs differ by
# 1e-6 of it; a wrong activation function in the vision tower already makes 6e-4.
TOLERANCE = 1e-4


class Mismatch(Exception):
    """The export is not what was trained. One line says in what."""


@dataclass(frozen=True)
class Comparison:
    """tensors: how many were read back. by: what computed the logits from the folder, "" if nothing
    could. difference: the largest one of any logit; allowed: how large it may be."""

    tensors: int
    by: str
    difference: float
    allowed: float

    def __str__(self) -> str:
        if not self.by:
            return f"{self.tensors} tensors read back; no logits, because torch is not installed"
        return (
            f"{self.tensors} tensors read back; logits of a question with a picture by {self.by} "
            f"differ by {self.difference:.1e} at most (allowed {self.allowed:.1e})"
        )


def verify(
    folder: str | pathlib.Path,
    source: str | pathlib.Path,
    params: Mapping | Edit,
    config: ModelConfig,
) -> Comparison:
    """Checks that `folder` is an export of `params` in the form of the checkpoint `source`.

    params: what `export_checkpoint` was given. The host must hold the model in float32 for torch.
    Raises Mismatch, and UserError where a folder cannot be read at all.
    """
    count = _read_back(pathlib.Path(folder), source, params, config)
    processor = Processor.from_dir(folder, config.family)
    picture = fixture_picture()
    prompt = processor.encode_question(QUESTION, [picture])
    theirs, by = _transformers_logits(folder, processor, prompt, picture)
    trained = None if callable(params) else _rounded(params, folder, config)
    if theirs is None and trained is not None:
        shardings = jax.tree.map(lambda x: x.sharding if isinstance(x, jax.Array) else None, params)
        again = load.load_params(folder, config, dtype=np.float32, shardings=shardings)
        theirs, by = logits(again, prompt, config), "srpo_jax's own importer"
    if theirs is None:
        return Comparison(count, "", 0.0, 0.0)
    # A function that edits the source is no parameters: the numbers it gave have just been read
    # back, so those of the folder are they.
    if trained is None:
        trained = load.load_params(folder, config, dtype=np.float32)
    ours = logits(trained, prompt, config)
    difference = float(np.max(np.abs(ours - theirs)))
    allowed = TOLERANCE * max(1.0, float(np.sqrt(np.mean(np.square(ours)))))
    found = Comparison(count, by, difference, allowed)
    if not difference <= allowed:  # also when it is no number
        raise Mismatch(str(found))
    return found


def fixture_picture() -> Image.Image:
    """The same RGB picture everywhere: ramps along both sides, a chessboard, 168 x 112 pixels."""
    y, x = np.mgrid[:112, :168]
    board = 255 * ((x // 28 + y // 28) % 2)
    pixels = np.stack([x * 255 // 167, y * 255 // 111, board], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def logits(params: Mapping, prompt: EncodedPrompt, config: ModelConfig) -> np.ndarray:
    """float32 [n, vocab_size]: every token's logits by our model, in full float32."""
    model = PolicyModel(config)
    rows = pad_rows([causal_row(prompt)], tokens=len(prompt.tokens), patches=len(prompt.patches))

    @jax.jit
    def run(params, rows):
        return model.apply({"params": params}, rows)[0] @ head_matrix(params, config)

    # By default an accelerator multiplies float32 matrices in bfloat16 or TF32.
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, rows))[:, : config.text.vocab_size]


def _read_back(folder: pathlib.Path, source, params, config: ModelConfig) -> int:
    """The number of tensors; Mismatch if one is not, byte for byte, what was to be written."""
    written = load.list_tensors(folder)
    wanted = load.placed_tensors(source, config)
    wrong = sorted(written.keys() ^ wanted.keys())
    for name in written.keys() & wanted.keys():
        tensor, place = wanted[name]
        expected = values_on_disk(params, tensor, place)
        found = written[name].view()
        same = found.dtype == expected.dtype and found.shape == expected.shape
        if not same or found.tobytes() != expected.tobytes():
            wrong.append(name)
    if wrong:
        raise Mismatch(f"tensors that are not the trained ones: {shorten(sorted(wrong))}")
    return len(written)


def _rounded(params: Mapping, folder, config: ModelConfig) -> dict:
    """float32 parameters, rounded to the dtypes of the files."""
    kinds: dict[str, dict[int, Any]] = {}
    for tensor, place in load.placed_tensors(folder, config).values():
        if place.entry.param is not None:
            kinds.setdefault(place.entry.param, {})[place.layer or 0] = load.DTYPES[tensor.dtype]

    def rounded(path, leaf):
        # Outside of jit: inside, XLA may leave out a cast that another one undoes.
        layers = kinds["/".join(str(key.key) for key in path)]
        if len(set(layers.values())) == 1:
            return jnp.asarray(leaf).astype(layers[0]).astype(jnp.float32)
        each = [jnp.asarray(leaf[i]).astype(kind) for i, kind in sorted(layers.items())]
        return jnp.stack([layer.astype(jnp.float32) for layer in each])

    return jax.tree_util.tree_map_with_path(rounded, params)


def _transformers_logits(
    folder, processor: Processor, prompt: EncodedPrompt, picture: Image.Image
) -> tuple[np.ndarray | None, str]:
    """(float32 [n, vocab], what computed them), or (None, "") without torch."""
    try:
        import torch  # pyright: ignore[reportMissingImports], not on every Python
    except ImportError:
        return None, ""
    import transformers

    model = _quietly_loaded(folder)
    takes = inspect.signature(model.forward).parameters
    ids = torch.tensor(prompt.tokens[None].astype(np.int64))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in takes:  # without it Qwen's positions are silently 1-D
        inputs["mm_token_type_ids"] = (ids == processor.config.image_token_id).int()
    images = processor.images
    shown = images.process(picture, return_tensors="np", **images.call)
    inputs |= {name: torch.tensor(np.asarray(v)) for name, v in shown.items() if name in takes}
    with torch.inference_mode():
        found = model(**inputs).logits[0].float().numpy()
    return found, f"transformers {transformers.__version__}"


def _quietly_loaded(folder):
    """transformers' model of the folder in float32. Mismatch if it cannot be loaded whole."""
    import torch  # pyright: ignore[reportMissingImports], not on every Python
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        model, info = loaded
    except Exception as error:  # transformers raises many kinds
        raise Mismatch(f"transformers cannot load it: {one_line(error, 300)}") from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise Mismatch(f"transformers finds {kind}: {shorten(sorted(map(str, info[kind])))}")
    return model.eval()
