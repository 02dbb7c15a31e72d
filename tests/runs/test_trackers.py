"""srpo_jax/runs/trackers.py, with fakes of the services: nothing here talks to a network."""

from __future__ import annotations

import json
import sys
import types

import pytest

from srpo_jax.errors import UserError
from srpo_jax.runs.trackers import make_trackers


class Fake(types.ModuleType):
    """Notes every call, as W&B and trackio would get it."""

    def __init__(self, name: str, fails: str = ""):
        super().__init__(name)
        self.calls, self.fails = [], fails

    def init(self, **options):
        if self.fails:
            raise RuntimeError(self.fails)
        self.calls.append(("init", options))

    def log(self, values, step):
        self.calls.append(("log", step, values))

    def finish(self):
        self.calls.append(("finish",))


def make(tmp_path, report_to, start=0):
    return make_trackers(report_to, tmp_path, name="run", config={"seed": 1}, start=start)


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_restart_goes_on_with_the_same_run(tmp_path, monkeypatch, service):
    """One run over two sessions, a new one for a new start, and no environment told to anybody."""
    monkeypatch.setenv("WANDB_API_KEY", "hunter2-secret")
    fake = Fake(service)
    monkeypatch.setitem(sys.modules, service, fake)
    for start in (0, 2, 0):
        (tracker,) = make(tmp_path, service, start)
        tracker.write(start + 1, {"loss": 1.5})
        tracker.close()
    named = [(call[1]["name"], call[1].get("id")) for call in fake.calls if call[0] == "init"]
    assert named[0] == named[1] != named[2]
    assert ("log", 3, {"loss": 1.5}) in fake.calls and fake.calls[-1] == ("finish",)
    assert fake.calls[0][1]["config"] == {"seed": 1}
    assert "hunter2" not in json.dumps(fake.calls)


def test_several_at_once_and_none(tmp_path, monkeypatch):
    """Names with commas; "none" makes nothing."""
    for service in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, service, Fake(service))
    assert len(make(tmp_path, "wandb,trackio")) == 2
    assert make(tmp_path, "none") == []


def test_each_service_goes_on_with_its_own_run(tmp_path, monkeypatch):
    """W&B and trackio together: a restart gives each the run that it had, and that of no other."""
    fakes = {service: Fake(service) for service in ("wandb", "trackio")}
    for service, fake in fakes.items():
        monkeypatch.setitem(sys.modules, service, fake)
    for start in (0, 2):
        make(tmp_path, "wandb,trackio", start)
    ids = {call[1]["id"] for call in fakes["wandb"].calls}
    names = {call[1]["name"] for call in fakes["trackio"].calls}
    assert len(ids) == len(names) == 1 and f"run-{ids.pop()}" not in names


@pytest.mark.parametrize("service, extra", [("wandb", "wandb"), ("tensorboardX", "report")])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, service, extra):
    """It says what to install."""
    monkeypatch.setitem(sys.modules, service, None)
    with pytest.raises(UserError, match=rf"srpo_jax\[{extra}\]") as error:
        make(tmp_path, "tensorboard" if extra == "report" else service)
    assert "\n" not in str(error.value)


def test_a_service_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    """Not logged in, no network: said before the first step, not after a day."""
    monkeypatch.setitem(sys.modules, "trackio", Fake("trackio"))
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb", fails="api_key not\nconfigured"))
    with pytest.raises(UserError, match="api_key not configured") as error:
        make(tmp_path, "trackio,wandb")
    assert "\n" not in str(error.value)
    assert sys.modules["trackio"].calls[-1] == ("finish",)
