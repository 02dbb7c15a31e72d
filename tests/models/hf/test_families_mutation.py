"""All families: a checkpoint with one fault in one tensor, for every tensor and every fault.

Import must refuse it in one line that names the tensor, before it reads any weights. What shapes
and dtypes cannot tell is tested as such: a square tensor that is transposed is loaded.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from srpo_jax.errors import UserError
from srpo_jax.models.hf import load
from srpo_jax.models.registry import load_model_config
from tests.support.families import CASES

FILE = "model.safetensors"


class Checkpoint:
    """A tiny checkpoint folder whose weights can be replaced and put back."""

    def __init__(self, case, folder):
        self.case, self.folder = case, case.make(folder)
        self.config = load_model_config(self.folder)
        self.tensors = load_file(self.folder / FILE)

    def load(self, tensors):
        save_file(tensors, self.folder / FILE, {"format": "pt"})
        return load.load_params(self.folder, self.config)

    def refused(self, tensors) -> str:
        with pytest.raises(UserError) as error:
            self.load(tensors)
        assert "\n" not in str(error.value) and str(self.folder) in str(error.value)
        return str(error.value)


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request, tmp_path_factory):
    return Checkpoint(CASES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def reads_no_weights(request, monkeypatch):
    """Refusal comes before reading: with a reader that fails, the message is the same."""
    if "refused" in request.node.name:
        monkeypatch.setattr(load.Stream, "array", lambda *_: pytest.fail("weights were read"))


def test_a_dropped_tensor_is_refused(checkpoint):
    """Nothing is left at its initial value."""
    for name in checkpoint.tensors:
        message = checkpoint.refused({n: v for n, v in checkpoint.tensors.items() if n != name})
        assert f"not in the checkpoint: {name}" in message


def test_a_renamed_tensor_is_refused(checkpoint):
    """The name that no rule knows and the one that is missing are both told."""
    for name in checkpoint.tensors:
        renamed = {n + "_" * (n == name): v for n, v in checkpoint.tensors.items()}
        message = checkpoint.refused(renamed)
        assert f"no parameter for: {name}_" in message and f"in the checkpoint: {name}" in message


def test_a_transposed_or_longer_tensor_is_refused(checkpoint):
    """Whatever the shape tells."""
    for name, value in checkpoint.tensors.items():
        turned = np.ascontiguousarray(value.T)
        longer = np.concatenate([value, value[:1]])
        for wrong in (turned, longer, value.reshape(1, *value.shape)):
            if wrong.shape != value.shape:
                message = checkpoint.refused({**checkpoint.tensors, name: wrong})
                assert f"wrong shape: {name} {list(wrong.shape)}" in message


def test_a_tensor_in_two_spellings_is_refused(checkpoint):
    """Under the Hub's name and under any other one that a tool writes: neither is preferred."""
    tried = 0
    for rename in checkpoint.case.module.LAYOUTS.values():
        for name, value in checkpoint.tensors.items():
            if rename(name) != name:
                message = checkpoint.refused({**checkpoint.tensors, rename(name): value.copy()})
                assert "two tensors for one place" in message
                assert name in message and rename(name) in message
                tried += 1
    assert tried or len(checkpoint.case.module.LAYOUTS) == 1


def test_a_tensor_of_another_kind_is_refused(checkpoint):
    """Numbers that would be changed silently: wider ones, and integers (quantised weights)."""
    for name, value in checkpoint.tensors.items():
        for kind, said in ((np.float64, "F64"), (np.int8, "I8")):
            wrong = {**checkpoint.tensors, name: value.astype(kind)}
            assert f"not {name} {said}" in checkpoint.refused(wrong)


def test_a_file_that_is_cut_is_refused(checkpoint):
    """By its name, wherever it is cut: in the last tensor, in any other, in the header."""
    whole = save(checkpoint.tensors, {"format": "pt"})
    for length in (*range(len(whole) - 1, 0, -len(whole) // 20), 7, 0):
        (checkpoint.folder / FILE).write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{FILE}: not a readable safetensors file"):
            load.load_params(checkpoint.folder, checkpoint.config)


def test_a_square_tensor_may_be_transposed_unseen(checkpoint):
    """No shape tells it, so it is loaded as it is: into its own parameter and nowhere else. Exports
    are compared number by number for that reason (test_verify.py)."""
    right = checkpoint.load(checkpoint.tensors)
    square = [n for n, v in checkpoint.tensors.items() if v.ndim == 2 and len(set(v.shape)) == 1]
    assert square  # every family has some: o_proj at least
    shardings = load.placed_tensors(checkpoint.folder, checkpoint.config)
    for name in square:
        turned = np.ascontiguousarray(checkpoint.tensors[name].T)
        found = checkpoint.load({**checkpoint.tensors, name: turned})
        changed = {
            "/".join(key.key for key in path)
            for (path, old), new in zip(
                jax.tree_util.tree_leaves_with_path(right), jax.tree.leaves(found), strict=True
            )
            if not np.array_equal(old, new)
        }
        assert changed == {shardings[name][1].entry.param} - {None}
