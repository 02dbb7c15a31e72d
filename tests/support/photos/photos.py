"""A real dataset in miniature: hand-written records over photographs that scikit-image ships.

records.jsonl beside this file holds the records; the photographs are saved as JPEG by
`write_photos`, so the repository holds none of them (skimage.data names the source and the terms of
each). short_paths.jsonl has other questions about them, in words that the demo's base policy was
taught. `write_trees` adds hand-made branches, so that the road from records to batches can be
walked without sampling.
"""

from __future__ import annotations

import json
import pathlib
import shutil

from PIL import Image

from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.path_formats.tokens import tokenize_reference
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.models.hf.processor import Processor
from tests.support.judged import branch, verdict, write_judged
from tests.support.tiny import tiny_qwen2_5_vl

FORMAT = make_format("lines")
RECORDS = pathlib.Path(__file__).with_name("records.jsonl")
SHORT_PATHS = pathlib.Path(__file__).with_name("short_paths.jsonl")
# JPEG name: file of skimage.data, in colour and in grey. No side of any is a multiple of 28.
PHOTOS = {
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "chelsea": "chelsea.png",
    "camera": "camera.png",
    "astronaut": "astronaut.png",
    "coins": "coins.png",
    "clock": "clock_motion.png",
}
TURNED = "chelsea"  # saved lying on its side, with the EXIF flag that says so, as phones do
MAX_PIXELS = 20 * 28 * 28  # small, so that a tiny model sees about 20 tokens a picture


def write_photos(folder: pathlib.Path) -> pathlib.Path:
    """Writes images/*.jpg and records.jsonl into `folder`; returns the path of the JSONL."""
    import skimage.data

    source = pathlib.Path(skimage.data.__file__).parent
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, file in PHOTOS.items():
        with Image.open(source / file) as photo:
            exif = Image.Exif()
            if name == TURNED:
                photo = photo.transpose(Image.Transpose.ROTATE_90)
                exif[0x0112] = 6
            photo.save(images / f"{name}.jpg", "JPEG", quality=92, exif=exif)
    shutil.copy(RECORDS, folder / "records.jsonl")
    return folder / "records.jsonl"


def write_short_paths(folder: pathlib.Path) -> pathlib.Path:
    """As write_photos, with the questions of short_paths.jsonl."""
    write_photos(folder)
    return pathlib.Path(shutil.copy(SHORT_PATHS, folder / SHORT_PATHS.name))


def write_checkpoint(folder: pathlib.Path, **options) -> pathlib.Path:
    """A tiny Qwen2.5-VL folder whose processor shrinks pictures to MAX_PIXELS."""
    tiny_qwen2_5_vl(folder, **options)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"max_pixels": MAX_PIXELS}, indent=2) + "\n")
    return folder


def write_trees(folder: pathlib.Path, jsonl: pathlib.Path, processor: Processor) -> pathlib.Path:
    """Two shards of tree records with a safe and an unsafe branch after every step prefix, and the
    set of their verdicts, `by-hand`. Returns the folder of the trees.
    """
    provenance = {
        "policy_digest": "none",
        "sampler": {},
        "seed": 0,
        "created_by": "tests",
    }
    trees = []
    for record in read_records(jsonl):
        pieces = tokenize_reference(record, processor, FORMAT)
        form = FORMAT.settings()
        tree = make_tree_record(record, pieces, branches(record, processor), provenance, form)
        trees.append({**tree, "reference_verdict": verdict("SAFE")})
    half = len(trees) // 2
    return write_judged(folder, trees[:half], trees[half:])


def branches(record: Record, processor: Processor) -> list[dict]:
    """At every branch point one branch to choose and one to reject, both from the record's text.

    The other one of a benign record is a needless refusal: safe, not effective.
    """
    found = []
    for at in range(len(record.steps)):
        good = (record.steps[at:], f"Gladly: {record.reply}", "SAFE", True)
        bad = (
            record.steps[at:-1] + ("I just answer what was asked.",),
            record.unsafe_reply or "I cannot help with that.",
            "UNSAFE" if record.risky else "SAFE",
            bool(record.risky),
        )
        for k, (steps, reply, safety, effective) in enumerate((good, bad)):
            pieces = FORMAT.pieces(steps, reply)
            tokens = [token for piece in pieces for token in processor.encode(piece)]
            found.append(
                branch(
                    at,
                    k,
                    safety,
                    tokens=[*tokens, processor.eos_ids[0]],
                    text="".join(pieces),
                    logp=-float(len(tokens)),
                    step_texts=list(steps),
                    reply_text=reply,
                    step_verdicts=[safety] * (at + len(steps)),
                    effective=effective,
                )
            )
    return found
