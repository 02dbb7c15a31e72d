"""The benchmarks run, compare equal losses and count tokens that add up. Times are not asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from srpo_jax.pack.tree_layout import choose_pairs
from studies.speed import workload
from studies.speed.tree_vs_pairs import svg, sweep
from studies.speed.tree_vs_pairs.variants import build
from tests.support import ROOT


def _run(*argv: str) -> tuple[str, dict]:
    """Run a benchmark as a user does; (what it printed, the JSON object of its last line)."""
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "studies").rglob("*.py")
    # What runs in a process of its own, with arguments, and not as a module.
    if path.name not in ("in_jax.py", "in_torch.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_every_study_can_be_imported(module):
    """What it takes from srpo_jax is still there; what is not installed here is nobody's fault."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        ours = (error.name or "").split(".")[0] in ("srpo_jax", "studies", "tests")
        assert not ours, error
        pytest.skip(str(error))


@pytest.mark.slow
def test_start_quick():
    """Every start is measured, on trees that were judged and trained on."""
    printed, result = _run("studies.speed.start", "--questions=60", "--shards=3")
    assert list(result["starts"]) == ["explore", "explore again", "train", "resume"]
    assert all(found["peak_mib"] > 50 for found in result["starts"].values())
    assert "explore again" in printed


@pytest.mark.slow
def test_tree_vs_pairs_quick():
    """All variants of one loss agree; the tree has the fewest tokens, padding only adds."""
    only = ("--only", "tree,pairs,unique")
    printed, result = _run("studies.speed.tree_vs_pairs", "--quick", "--repeat", "1", *only)
    found = result["variants"]
    assert set(found) == {"tree", "pairs", "unique"} and result["pairs"] > 8
    for name in ("tree", "unique"):
        assert found[name]["compared_with"] == "pairs"
        assert found[name]["loss"] == pytest.approx(found["pairs"]["loss"], rel=1e-5)
        assert found[name]["gradient_difference"] < 1e-5
        assert found[name]["real_tokens"] < found["pairs"]["real_tokens"]
    for figures in found.values():
        assert figures["real_tokens"] <= figures["padded_tokens"]
        assert figures["temp_mib"] > 0 and figures["wall_s"] > 0
    assert "| unique" in printed  # the table


@pytest.mark.slow
def test_vs_torch_quick():
    """Torch's pairwise ORPO and our tree give one loss and one gradient norm."""
    pytest.importorskip("torch")
    argv = ("--quick", "--repeat", "1", "--only", "tree,torch-pairs")
    found = _run("studies.speed.vs_torch", *argv)[1]["variants"]
    ours, theirs = found["tree"], found["torch-pairs"]
    assert ours["pairs"] == theirs["pairs"] > 8  # more than one micro-batch
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    assert theirs["rows"] == 2 * theirs["pairs"]
    assert 0 < ours["real_tokens"] < theirs["real_tokens"] <= theirs["padded_tokens"]
    assert ours["peak_rss_mib"] > 0 < theirs["peak_rss_mib"]


def test_token_counts_add_up():
    """Of each variant, against sums over the question's parts."""
    width = workload.QUICK_WIDTH
    made, config, count = build(workload.QUICK, width, ("tree", "pairs", "unique"), seed=3)
    tree = workload.random_question(workload.QUICK, config, 3)
    prompt, reference = len(tree.prompt.tokens), len(tree.reference)
    branch = [len(tree.prefix(b.at)) + len(b.tokens) for b in tree.branches]
    pairs = choose_pairs(tree)
    used = {k for chosen, rejected, _ in pairs for k in (chosen, rejected)}
    want = {
        "pairs": sum(2 * prompt + branch[c] + branch[r] for c, r, _ in pairs) + prompt + reference,
        "unique": sum(prompt + branch[k] for k in used) + prompt + reference,
    }
    assert count == len(pairs) == len({pair[:2] for pair in pairs})
    assert {name: made[name][0].real_tokens for name in want} == want
    assert made["pairs"][0].rows == 2 * count + 1 and made["unique"][0].rows == len(used) + 1
    # Half of the branches share `shared` tokens with a sibling, unless they are in no pair.
    once = prompt + reference + sum(len(tree.branches[k].tokens) for k in used)
    shared = workload.QUICK.shared * len(tree.branches) // 2
    assert once - shared - 8 <= made["tree"][0].real_tokens <= once
    for name, (variant, _) in made.items():
        inputs = [batch["inputs"]["tokens"] for batch in variant.batches]
        assert variant.padded_tokens == sum(x.size for x in inputs), name


def test_sweep_counts_and_figure(tmp_path, monkeypatch):
    """The sweep counts every point without timing any, and draws a well-formed figure."""
    monkeypatch.setattr(sweep, "FIGURE", tmp_path / "figure.svg")
    monkeypatch.setattr(sweep, "QUESTIONS", 1)
    result = sweep.run(quick=False, only="none", times="")
    points = result["counts"]
    assert set(points) == {f"{a}={label}" for a, (_, ps) in sweep.AXES.items() for label, *_ in ps}
    assert points["image=0"]["pairs"] < points["image=256"]["pairs"] < points["image=2560"]["pairs"]
    assert all(p["unique"] <= p["pairs"] for p in points.values())
    root = xml.etree.ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert len(root.findall(".//{*}g")) == len(sweep.AXES)


def test_figure_escapes_its_texts():
    """Labels may hold any character."""
    panel = svg.Panel("a < b & c", ["<1>", "2"], [[1.0, 10.0]], [(0, 1, 3.0)])
    drawn = svg.figure([panel], ["x & y"], about="<about>", mark="<mark>")
    texts = [t.text for t in xml.etree.ElementTree.fromstring(drawn).iter() if t.text]
    assert {"a < b & c", "<1>", "x & y", "<about>", "<mark>"} <= set(texts)


@pytest.mark.slow
def test_start():
    """Both commands begin, and go on, on a few questions; every start tells what it took."""
    printed, result = _run("studies.speed.start", "--questions=40", "--shards=2")
    assert result["questions"] == 40 and "| resume" in printed
    assert list(result["starts"]) == ["explore", "explore again", "train", "resume"]
    for took in result["starts"].values():
        assert 0 < took["cpu_seconds"] < 120 and 100 < took["peak_mib"] < 1024


@pytest.mark.slow
def test_sampling_quick():
    """Every way answers every branch, and the engine's share of its slots is told."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "studies.speed.sampling", "--quick", "--runs=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("run 0: ") == 4
    found = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert list(found) == ["engine", "generate", "reused", "loop"]
    assert found["engine"]["times"] == 1 and 0 < found["engine"]["slots_in_use"] <= 1
    for way in found.values():  # four questions of four branches of one to eight tokens
        assert 16 <= way["tokens"] <= 128 and way["cpu_seconds"] > 0


@pytest.mark.slow
def test_judge_calls():
    """Judging takes at most 1.6 times calls x latency / concurrency, or the study itself fails."""
    printed, result = _run("studies.speed.judge_calls")
    assert printed.count(" x ") == result["runs"] == len(result["seconds"])
    assert 1 <= result["ratio"] <= 1.6


def test_checkpoint_save():
    """A small state goes through both ways; ratios come from as many saves as were asked for."""
    printed, result = _run("studies.speed.checkpoint_save", "--mb=1", "--rounds=2", "--arrays=2")
    assert "plain orbax" in printed and result["rounds"] == 2
    assert all(result[f"{what}_ratio"] > 0 for what in ("blocks", "total", "cpu"))


@pytest.mark.slow
def test_report_page_quick():
    """Every failure is on the page; where there is a Chromium, each button leaves as many as it
    says.
    """
    printed, result = _run("studies.speed.report_page", "--questions=40")
    assert result["questions"] == 40 and result["page_mb"] > 0
    if "open_s" in result:
        assert result["failures"] == 40 and len(result["filters"]) == 8
        assert all(each["says"] == each["left"] > 0 for each in result["filters"])
