"""Data that chooses is no test data: a checkpoint picked by the test set is trained on it."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable, Sequence

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.images import read_image_bytes
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path, trees_path
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.errors import UserError

Question = tuple[str, tuple[str, ...]]  # its text, and the SHA-256 of its pictures


def check_not_test(cfg: Config, workdir: pathlib.Path, records: Sequence[Record]) -> None:
    """Errors: UserError if a question by which a checkpoint is chosen, of records or of
    data.validation_trees, is one of data.test_records, whatever it is called there.
    """
    if not cfg.data.test_records:
        return
    place = records_path(cfg.data.test_records, workdir, field="data.test_records")
    if not pathlib.Path(place).is_file():  # of a machine that only trains
        same = cfg.data.validation_records == cfg.data.test_records
        shared = [records[0].id] if same and records else []
    else:
        test = set(_questions(read_records(place)))
        chosen = dict(zip((record.id for record in records), _questions(records), strict=True))
        if cfg.data.validation_trees:
            chosen |= dict(_of_trees(trees_path(cfg.data.validation_trees, workdir)))
        shared = [name for name, question in chosen.items() if question in test]
    if shared:
        raise UserError(
            f"{len(shared)} validation questions, {shared[0]!r} first, are test questions too, and "
            f"train.best_metric={cfg.train.best_metric} with train.keep_best or train.patience "
            "would choose by them: take other validation data"
        )


def _questions(records: Iterable[Record]) -> list[Question]:
    return [
        (
            record.question,
            tuple(
                hashlib.sha256(read_image_bytes(path, what=f"record {record.id!r}")).hexdigest()
                for path in record.image_paths()
            ),
        )
        for record in records
    ]


def _of_trees(folder: pathlib.Path) -> Iterable[tuple[str, Question]]:
    for tree in read_shards(folder):
        yield tree["id"], (tree["question"], tuple(image["sha256"] for image in tree["images"]))
