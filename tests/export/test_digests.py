"""srpo_jax/export/digests.py: a changed bit anywhere in an export is told."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.errors import UserError
from srpo_jax.export.digests import DIGESTS, check_digests, write_digests
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.registry import load_model_config
from tests.support.tiny import tiny_qwen2_5_vl


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digests")
    source = tiny_qwen2_5_vl(folder / "in", max_shard_size=60_000)
    (source / "chat_templates").mkdir()
    (source / "chat_templates" / "tool.jinja").write_text("{{ x }}")
    config = load_model_config(source)
    params = load_params(source, config)
    export_checkpoint(params, source, folder / "out", config, check=write_digests)
    return folder / "out"


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export that may be damaged, as a download or an upload would make it."""
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "copy" / ".cache").mkdir()
    (tmp_path / "copy" / ".cache" / "lock").touch()
    (tmp_path / "copy" / ".gitattributes").touch()
    return tmp_path / "copy"


def files(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and ".cache" not in p.parts]


def test_an_export_that_was_copied_is_whole(exported, copy, capsys):
    """Every file is listed, and what tools add beside them is no fault."""
    listed = json.loads((exported / DIGESTS).read_text())["files"]
    assert set(listed) == {str(p.relative_to(exported)) for p in files(exported)} - {DIGESTS}
    assert check_digests(copy) == (len(listed), [])
    assert cli.main(["export", "--check", str(copy)]) == 0
    assert f"{len(listed)} files are what was exported, 0 are not" in capsys.readouterr().out


def test_one_flipped_bit_is_found_in_every_file(copy):
    """Wherever it is: 40 places in all, of weights, settings and texts."""
    rng = np.random.default_rng(0)
    small = [path for path in files(copy) if path.stat().st_size]
    for number in range(40):
        path = small[number % len(small)]
        whole = path.read_bytes()
        place = int(rng.integers(8 * len(whole)))
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            faults = check_digests(copy)[1]
        except UserError:  # in the list itself
            faults = [DIGESTS] * (path.name == DIGESTS)
        name = str(path.relative_to(copy))
        assert faults and (path.name == DIGESTS or f"{name}: has other contents" in faults)
        path.write_bytes(whole)
    assert not check_digests(copy)[1]


def test_files_that_are_lost_added_or_cut_are_named(copy, capsys):
    """Exit code 1 and a line for each."""
    (copy / "generation_config.json").unlink()
    (copy / "chat_template.jinja").write_text("{{ 1 }}")
    weights = next(copy.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    assert cli.main(["export", f"--check={copy}"]) == 1
    out, err = capsys.readouterr()
    assert "3 are not" in out and err.count("\n") == 3
    assert "generation_config.json: is not there" in err
    assert "chat_template.jinja: was not exported" in err
    assert f"{weights.name}: has {weights.stat().st_size} bytes" in err


def test_links_and_pipes_are_no_part_of_an_export(copy):
    """One that leads nowhere, one to a folder, a pipe beside the files or in the place of one: each
    is named, and nothing waits for a pipe."""
    (copy / "more").symlink_to(copy.parent, target_is_directory=True)
    (copy / "lost").symlink_to("nowhere")
    (copy / "config.json").unlink()
    for name in ("pipe", "config.json"):
        os.mkfifo(copy / name)
    assert check_digests(copy)[1] == [
        "lost: was not exported",
        "more: was not exported",
        "pipe: was not exported",
        "config.json: is no file",
    ]


@pytest.mark.parametrize(
    "content", [None, "{", '{"files": []}', '{"files": {}}', '{"files": ' + "[" * 100_000]
)
def test_a_folder_without_a_list_is_one_line(copy, capsys, content):
    """An export of an older version, another model, or a damaged list: exit code 2."""
    (copy / DIGESTS).unlink() if content is None else (copy / DIGESTS).write_text(content)
    assert cli.main(["export", f"--check={copy}"]) == 2
    assert DIGESTS in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_a_list_reaches_nothing_outside_of_its_folder(copy, tmp_path):
    """A name in a list that a stranger wrote is looked for among the folder's files alone."""
    (tmp_path / "secret").write_text("x")
    listed = json.loads((copy / DIGESTS).read_text())
    for name in ("../secret", str(tmp_path / "secret"), "a\n\x1b[31m"):
        listed["files"][name] = {"bytes": 1, "sha256": "0"}
    (copy / DIGESTS).write_text(json.dumps(listed))
    faults = check_digests(copy)[1]
    assert len(faults) == 3 and all(fault.endswith("is not there") for fault in faults)
    assert all(fault.isprintable() for fault in faults)


def test_the_list_is_a_function_of_the_files(exported, tmp_path):
    """The same tree gives the same bytes, and an export of an export does not list an old list."""
    before = (exported / DIGESTS).read_bytes()
    config = load_model_config(exported)
    params = load_params(exported, config)
    export_checkpoint(params, exported, tmp_path / "again", config, check=write_digests)
    assert (tmp_path / "again" / DIGESTS).read_bytes() == before
    export_checkpoint(params, exported, tmp_path / "bare", config)
    assert not (tmp_path / "bare" / DIGESTS).exists()
