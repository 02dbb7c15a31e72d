"""srpo_jax/distributed/no_tpu.py: libtpu without a TPU says nothing, with one everything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from srpo_jax.distributed import no_tpu
from srpo_jax.distributed.no_tpu import may_have_tpu
from tests.support import ROOT, plain_environment

FIND = """
import sys
from srpo_jax.distributed import no_tpu
no_tpu.leave_libtpu_alone() if sys.argv[1] == "quiet" else None
import flax.linen, jax
print(jax.devices()[0].platform)
from jax.experimental import topologies
print(len(topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices))
"""


def test_where_there_may_be_a_tpu_nothing_is_changed(tmp_path, monkeypatch):
    """Its device files, or what Google's machines and users set, are enough to see its errors."""
    none = (str(tmp_path / "accel*"),)
    assert not may_have_tpu({"HOME": "/"}, none) and not may_have_tpu({"TPU_NAME": ""}, none)
    for name in no_tpu.SAID:
        assert may_have_tpu({name: "x"}, none)
    (tmp_path / "accel0").touch()
    assert may_have_tpu({}, none)

    from jax._src import cloud_tpu_init, xla_bridge

    real = xla_bridge._backend_factories
    factories = dict(real)
    monkeypatch.setattr(xla_bridge, "_backend_factories", factories)
    monkeypatch.setattr(no_tpu.importlib.util, "find_spec", lambda _: object())
    for has, found in ((True, True), (False, True), (True, False)):
        monkeypatch.setattr(no_tpu, "may_have_tpu", lambda _, has=has: has)
        monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", found)
        no_tpu.leave_libtpu_alone()
        assert factories == real
    monkeypatch.setattr(no_tpu, "may_have_tpu", lambda _: False)
    no_tpu.leave_libtpu_alone()
    assert list(factories) == list(real) and factories["tpu"].factory() is None
    assert {name: factories[name] for name in real if name != "tpu"} == {
        name: real[name] for name in real if name != "tpu"
    }


@pytest.mark.tpu_aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_libtpu_without_a_tpu_is_silent():
    """And still compiles for one. The same without our care is loud, so there is something to
    silence.
    """
    env = {k: v for k, v in plain_environment().items() if k != "JAX_PLATFORMS"}
    env |= {"PYTHONPATH": str(ROOT), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    said = {}
    for how in ("quiet", "loud"):
        command = [sys.executable, "-c", FIND.rpartition("from jax")[0], how]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout.split()[0] in ("cpu", "gpu"), done.stderr
        said[how] = done.stderr
    assert said["quiet"] == "" and "TPU" in said["loud"]
    command = [sys.executable, "-c", FIND, "quiet"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[1:] == ["4"], done.stderr
