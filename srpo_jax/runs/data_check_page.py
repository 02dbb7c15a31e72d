"""`srpo data check`: the page of its tables. It needs nothing else to be looked at."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from srpo_jax import __version__
from srpo_jax.data_pipelines.exchange.checking.check import Table
from srpo_jax.files import write_text
from srpo_jax.runs.report.markup import fill


def write_page(path: pathlib.Path, tables: Sequence[Table], name: str) -> pathlib.Path:
    """Writes the page to `path`, atomically. name: of the data set."""
    write_text(path, fill("data_check.html", name=name, version=__version__, tables=tables))
    return path
