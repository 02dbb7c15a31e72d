"""srpo_jax/models/hf/tensor_match.py."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.hf import tensor_match as names
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from tests.support.layouts import newer_name
from tests.support.tiny import shapes, tiny_qwen2_5_vl


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request, tmp_path_factory):
    """(shapes by tensor name, ModelConfig) of a tiny checkpoint."""
    folder = tiny_qwen2_5_vl(tmp_path_factory.mktemp("names"), tied=request.param)
    return shapes(tied=request.param), load_model_config(folder)


def refused(found, config) -> str:
    with pytest.raises(UserError) as error:
        names.match(found, config, "here")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_tensor_has_one_place_and_comes_back_from_it(checkpoint):
    """The table is a bijection between (tensor, element) and (parameter, element)."""
    found, config = checkpoint
    shardings = names.match(found, config, "here")
    assert (
        len({(p.entry.param, p.layer) for p in shardings.values()}) == len(shardings) == len(found)
    )
    for name, place in shardings.items():
        tensor = np.arange(np.prod(found[name])).reshape(found[name])
        value = place.entry.to_param(tensor)
        assert value.shape == place.entry.shape
        assert np.array_equal(place.entry.to_disk(value), tensor)


def test_the_table_is_the_model(checkpoint):
    """Paths and shapes of the table are exactly the parameters that the model asks for."""
    _, config = checkpoint
    ours = {entry.param: entry.full_shape for entry in names.table(config)}
    wanted = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    assert ours == {"/".join(key.key for key in path): leaf.shape for path, leaf in wanted}


def test_both_spellings_go_to_the_same_places(checkpoint):
    """The Hub's names and those of transformers 4.52 and later fill the same parameters."""
    found, config = checkpoint
    hub = names.match(found, config, "here")
    newer = names.match({newer_name(n): s for n, s in found.items()}, config, "here")
    assert newer == {newer_name(n): place for n, place in hub.items()}


def test_any_one_missing_tensor_is_refused_by_name(checkpoint):
    """No parameter is ever left unfilled, whichever tensor is lost."""
    found, config = checkpoint
    for name in found:
        message = refused({n: s for n, s in found.items() if n != name}, config)
        assert f"not in the checkpoint: {name}" in message


def test_any_one_renamed_tensor_is_refused_by_name(checkpoint):
    """A name that no rule knows is never skipped."""
    found, config = checkpoint
    for name in found:
        message = refused({n + ("x" if n == name else ""): s for n, s in found.items()}, config)
        assert f"no parameter for: {name}x" in message and f"checkpoint: {name}" in message


def test_any_one_wrong_shape_is_refused_by_name(checkpoint):
    """Transposed, cut or longer: a tensor that does not fit is never reshaped into place."""
    found, config = checkpoint
    for name, shape in found.items():
        transposed, longer = shape[::-1], (shape[0] + 1, *shape[1:])
        for wrong in {transposed, longer} - {shape}:
            assert f"wrong shape: {name} {list(wrong)}" in refused({**found, name: wrong}, config)


def test_any_one_tensor_under_both_spellings_is_refused(checkpoint):
    """Two tensors for one parameter: neither is preferred."""
    found, config = checkpoint
    for name, shape in found.items():
        if newer_name(name) != name:
            message = refused({**found, newer_name(name): shape}, config)
            assert "two tensors for one place" in message and name in message


def test_many_faults_are_counted(checkpoint):
    """One error tells of everything, in a line that can be read."""
    found, config = checkpoint
    message = refused({f"other.{n}": s for n, s in found.items()}, config)
    assert message.count(f"... ({len(found)} in all)") == 2
    assert len(message) < 1500
