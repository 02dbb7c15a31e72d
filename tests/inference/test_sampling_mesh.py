"""How devices and memory are shared out for sampling: tables of pure functions."""

from __future__ import annotations

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.config.fields import Config
from srpo_jax.config.sampling_sections import ExploreSettings
from srpo_jax.distributed.accelerators import CHIPS, bound_rows, device_memory
from srpo_jax.errors import UserError
from srpo_jax.inference import sampling_mesh
from srpo_jax.inference.sampling_mesh import (
    GIB,
    Shape,
    asked_sizes,
    bytes_per_row,
    cache_bytes,
    fixed_bytes,
    rows_that_fit,
    sampling_sizes,
    split_weights,
    works_alone,
)
from tests.support.multi_device_run import tiny_config

HBM = {name: int(chip.hbm_gib * GIB) // chip.devices for name, chip in CHIPS.items()}


def weights(size: float, kv_heads: int) -> dict[int, int]:
    """A policy of `size` GB of bfloat16, by how many ways it is split."""
    return {n: int(size * 1e9) // n for n in (1, 2, 4, 8) if kv_heads % n == 0}


@pytest.mark.parametrize(
    "size, kv_heads, chip, devices, sizes",
    [
        (16.6, 4, "v5e", 4, (2, 1, 2)),  # Qwen2.5-VL-7B: 15.5 GiB, half of it 7.7 of 15.75
        (16.6, 4, "v5e", 8, (4, 1, 2)),
        (20.0, 4, "v5e", 16, (4, 1, 4)),
        (16.6, 4, "v6e", 8, (8, 1, 1)),
        (16.6, 4, "v5p", 4, (4, 1, 1)),
        (7.5, 2, "v5e", 4, (4, 1, 1)),  # 3B: 7.0 GiB of 15.75
        (147, 8, "v6e", 8, (1, 1, 8)),  # 72B: 17.1 GiB, more than half, but all that there is
        (147, 8, "v5p", 8, (2, 1, 4)),
        (147, 8, "v5p", 64, (16, 1, 4)),
        (147, 8, "tpu7x", 16, (4, 1, 4)),
    ],
)
def test_the_smallest_split_that_leaves_half_of_the_memory(size, kv_heads, chip, devices, sizes):
    """Where none does, the largest that fits; the rest of the devices are replicas."""
    possible = {n: w for n, w in weights(size, kv_heads).items() if devices % n == 0}
    assert sampling_sizes(possible, devices, HBM[chip]) == sizes


def test_without_a_known_memory_nothing_is_split():
    """On CPUs."""
    assert sampling_sizes(weights(147, 8), 8, None) == (8, 1, 1)
    assert device_memory(jax.devices()[0]) is None


def test_a_policy_that_no_split_makes_small_enough_is_refused():
    """In one line with the numbers."""
    with pytest.raises(UserError, match=r"17.1 GiB a device when it is split 8 ways") as error:
        sampling_sizes(weights(147, 8), 16, HBM["v5e"])
    assert "\n" not in str(error.value)


def test_what_a_policy_can_be_split_by():
    """Divisors of its key/value heads and of the devices; each halves nearly all of it."""
    found = split_weights(tiny_config(), "bfloat16", 8)
    assert sorted(found) == [1, 2] and split_weights(tiny_config(), "bfloat16", 3) == {1: found[1]}
    assert found[1] / 2 < found[2] < 0.6 * found[1]
    assert split_weights(tiny_config(), "float32", 1)[1] == 2 * found[1]


def test_a_mesh_that_is_asked_for():
    """Axes left out are 1, data takes the rest; what cannot be is one line that names the field."""
    assert asked_sizes("tensor=4", 8, 4) == (2, 1, 4)
    assert asked_sizes("data=2,fsdp=2,tensor=2", 8, 4) == (2, 2, 2)
    for text, devices, why in (
        ("data=2", 8, "does not cover 8 device"),
        ("tensor=4", 6, "does not cover 6 device"),
        ("tensor=4", 2, "does not cover 2 device"),
        ("tensor=8", 8, "has 4 key/value heads"),
        ("data=4,data=4", 8, "named twice"),
    ):
        with pytest.raises(UserError, match=f"explore.mesh={text}.*{why}") as error:
            asked_sizes(text, devices, 4)
        assert "\n" not in str(error.value)


def test_rows_are_bound_by_memory_or_by_the_arithmetic():
    """Of a 7B with 48 branches of 512 tokens: what 15.75 GiB leave beside a quarter of the weights;
    with few branches as many slots as a step takes for the price of one.
    """
    v5e = dict(memory=HBM["v5e"], bound=bound_rows("TPU v5 lite"))
    assert v5e["bound"] == 240
    assert rows_that_fit(GIB, 48, weights=4 * GIB, replicas=1, **v5e) == 5
    assert rows_that_fit(4 * GIB, 48, weights=4 * GIB, replicas=3, **v5e) == 6
    assert rows_that_fit(GIB, 1, weights=4 * GIB, replicas=1, **v5e) == 10
    assert rows_that_fit(GIB, 300, weights=4 * GIB, replicas=2, **v5e) == 2
    assert rows_that_fit(GIB, 16, weights=GIB, memory=None, bound=64, replicas=2) == 8
    with pytest.raises(UserError, match="48 branches at once takes 11.0 GiB") as error:
        rows_that_fit(11 * GIB, 48, weights=4 * GIB, replicas=1, **v5e)
    assert "\n" not in str(error.value)


@given(
    per_row=st.integers(1, 10 * GIB),
    slots=st.integers(1, 500),
    replicas=st.integers(1, 64),
    memory=st.integers(GIB, 200 * GIB),
)
def test_rows_never_take_more_than_there_is(per_row, slots, replicas, memory):
    """And all replicas have the same number."""
    held = memory // 3
    try:
        rows = rows_that_fit(
            per_row, slots, weights=held, memory=memory, bound=240, replicas=replicas
        )
    except UserError:
        assert held + per_row > 0.9 * memory
        return
    each, rest = divmod(rows, replicas)
    assert rest == 0 and each >= 1 and held + each * per_row <= memory
    assert each == 1 or each * slots <= 240


def test_a_row_holds_its_keys_and_values():
    """Tokens and branches count with the bytes of a token's keys and values, split over tensor, and
    branches with three copies of their logits; a prefill with its tokens and patches, once."""
    config = tiny_config()
    text = config.text
    token = 2 * text.num_layers * text.num_kv_heads * text.head_dim * 2
    assert cache_bytes(text, tensor=1, itemsize=2) == token
    size = lambda tokens, slots, tensor=1: bytes_per_row(  # noqa: E731
        text, Shape(tokens, slots, 512, 0), tensor=tensor, itemsize=2
    )
    assert size(101, 4) - size(100, 4) == token
    assert size(100, 4) - size(100, 3) == 512 * token + 3 * 4 * text.padded_vocab
    assert size(1000, 4, 2) == size(1000, 4) / 2
    fixed = lambda tokens, patches: fixed_bytes(  # noqa: E731
        config, Shape(tokens, 4, 512, patches), tensor=1, itemsize=2
    )
    assert fixed(20, 0) - fixed(10, 0) > 10 * 2 * 3 * text.intermediate_size
    assert fixed(10, 64) > fixed(10, 0) > 0


@pytest.mark.parametrize(
    "mesh, together, memory, alone",
    [
        ("auto", "auto", None, True),
        ("auto", "auto", 10**9, True),
        ("auto", "auto", 10**4, False),
        ("auto", "no", 10**4, True),
        ("auto", "yes", None, False),
        ("data=1", "auto", 10**4, True),
        ("data=4", "auto", None, False),
    ],
)
def test_who_explores_alone(mesh, together, memory, alone, monkeypatch):
    """A process whose devices hold the policy, or that was told so; a mesh that needs more devices
    than it has is one of all processes."""
    monkeypatch.setattr(sampling_mesh, "device_memory", lambda device: memory)
    cfg = Config(explore=ExploreSettings(mesh=mesh, together=together))
    assert works_alone(cfg, tiny_config()) is alone
