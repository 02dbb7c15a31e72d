"""Which scores make a row, and which a column."""

import pytest

from srpo_jax.errors import UserError
from srpo_jax.runs.methods_table.collect import collect
from tests.support.scored import JUDGE, TEACHER, risky_rows, row, write_evaluation, write_run


def make_runs(folder, seeds=2):
    for seed in range(seeds):
        write_run(folder / f"run{seed}", seed=seed)
        write_evaluation(folder / f"run{seed}", "before", risky_rows(2), policy="base")
        write_evaluation(folder / f"run{seed}", "after", risky_rows(8), policy=f"trained {seed}")
    return [folder / f"run{seed}" for seed in range(seeds)]


def test_seeds_are_one_row_and_the_base_policy_another(tmp_path):
    """Runs that differ in the seed alone; their base policy, evaluated in each, counts once."""
    found = collect(make_runs(tmp_path))
    (column,) = found.columns
    assert [row.name for row in found.methods][0] == "base" and len(found.methods) == 2
    assert [len(row.cells[column]) for row in found.methods] == [1, 2]
    base, trained = found.methods
    assert found.base_of(trained) is base and found.base_of(base) is None
    assert column.questions == 10
    write_run(tmp_path / "other", seed=0, lambda_exp=0.7)
    write_evaluation(tmp_path / "other", "after", risky_rows(9), policy="other")
    more = collect([*make_runs(tmp_path / "again"), tmp_path / "other"])
    assert [len(row.evaluations) for row in more.methods] == [1, 2, 1]
    assert len({row.name for row in more.methods}) == 3


def test_what_a_run_began_with_is_its_base(tmp_path):
    """Under any name, in a workdir of its own; of two base policies each run has its own."""
    for name in ("one", "two"):
        write_evaluation(tmp_path / "models", name, risky_rows(2), policy=f"weights {name}")
        write_run(
            tmp_path / name, began_with=f"weights {name}", lambda_exp=len(name) + (name == "one")
        )
        write_evaluation(tmp_path / name, "after", risky_rows(8), policy=f"trained {name}")
    write_evaluation(tmp_path / "models", "stranger", risky_rows(9), policy="weights of others")
    found = collect([tmp_path / name for name in ("models", "one", "two")])
    assert [row.is_base for row in found.methods] == [True, True, False, False, False]
    own = {row.name: found.base_of(row) for row in found.methods if not row.is_base}
    assert own.pop("models/stranger") is None and None not in own.values()
    for method in found.methods[2:]:
        if base := found.base_of(method):
            assert base.evaluations[0].name == method.evaluations[0].workdir.name
    write_run(tmp_path / "next", began_with="trained one")
    write_evaluation(tmp_path / "next", "after", risky_rows(9), policy="trained twice")
    more = collect([tmp_path / "one", tmp_path / "next"])
    assert [method.is_base for method in more.methods] == [False, False]


def test_runs_of_a_demo_are_found(tmp_path):
    """WORKDIR/runs/METHOD-SEED count with WORKDIR."""
    write_evaluation(tmp_path, "before", risky_rows(2), policy="base")
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"srpo-{seed}", seed=seed)
        place = tmp_path / "runs" / f"srpo-{seed}"
        write_evaluation(place, "after", risky_rows(8), policy=f"trained {seed}")
    assert [len(row.evaluations) for row in collect([tmp_path]).methods] == [1, 2]


def test_other_questions_and_other_judges_are_other_columns(tmp_path):
    """What cannot be compared does not stand in one column; the policy of "before" is the base
    under any name."""
    (run,) = make_runs(tmp_path, seeds=1)
    write_evaluation(run, "few", risky_rows(2, 4), policy="trained 0")
    write_evaluation(run, "siuo", risky_rows(3), policy="trained 0", benchmark="SIUO")
    write_evaluation(run, "taught", risky_rows(9), policy="trained 0", judge=TEACHER)
    write_evaluation(run, "base-few", risky_rows(1, 4), policy="base")
    found = collect([run])
    assert len(found.columns) == 4 and [row.name for row in found.methods][0] == "base"
    base, trained = found.methods
    assert len(base.cells) == 2 and len(trained.cells) == 4
    marked = [column for column in found.columns if trained.own_teacher(column)]
    assert [column.judge for column in marked] == [TEACHER["digest"]] != [JUDGE["digest"]]


def test_the_same_seed_twice_is_not_two_seeds(tmp_path):
    """The same policy under two names counts once; another one, though its config and seed are the
    same, is a row of its own."""
    (run,) = make_runs(tmp_path, seeds=1)
    for name, policy in (("copy", "trained 0"), ("again", "trained anew")):
        write_run(tmp_path / name)
        write_evaluation(tmp_path / name, "after", risky_rows(8), policy=policy)
    found = collect([run, tmp_path / "copy", tmp_path / "again"])
    assert [len(row.evaluations) for row in found.methods] == [1, 1, 1]
    assert len({row.name for row in found.methods}) == 3


def test_a_folder_without_scores_is_refused(tmp_path):
    """One line that names it, and what to do."""
    (run,) = make_runs(tmp_path, seeds=1)
    (tmp_path / "empty" / "eval" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="empty has no eval/NAME/scores.json"):
        collect([run, tmp_path / "empty"])
    (tmp_path / "empty" / "eval" / "a" / "answers.json").write_text("{}")
    with pytest.raises(UserError, match="judge .*eval/a first"):
        collect([tmp_path / "empty"])
    with pytest.raises(UserError, match="does not exist"):
        collect([tmp_path / "none"])


def test_two_policies_of_one_run_are_two_rows(tmp_path):
    """Such as two checkpoints, evaluated under two names."""
    (run,) = make_runs(tmp_path, seeds=1)
    write_evaluation(run, "early", [row("q0", "SAFE")] + risky_rows(5)[1:], policy="early")
    names = [row.name for row in collect([run]).methods]
    assert len(names) == len(set(names)) == 3 and any("early" in name for name in names)


def test_a_base_policy_asked_otherwise_is_a_row_of_its_own(tmp_path):
    """Safety prompt, forced prefix and best of several, on two benchmarks each; they are compared
    with the base policy, and no judge of the training is their teacher.
    """
    write_run(tmp_path, began_with="base")
    plain = {"policy": "base", "prompt_digest": "p"}
    ways = {
        "before": plain,
        "safety": {**plain, "prompt_digest": "other"},
        "warns": {**plain, "decoding": {"forced_prefix": "I first ask."}},
        "best": {**plain, "decoding": {"best_of": 4}, "chosen": {"from": "pool", "judge": JUDGE}},
        "copy": plain,
    }
    for name, way in ways.items():
        for benchmark, judge in (("siuo", JUDGE), ("rsbench", TEACHER)):
            more = {"benchmark": benchmark, "judge": judge}
            write_evaluation(tmp_path, f"{name}-{benchmark}", risky_rows(2), **way, **more)
    write_evaluation(
        tmp_path, "rsbench", risky_rows(8), policy="t", judge=TEACHER, benchmark="rsbench"
    )
    found = collect([tmp_path])
    names = [row.name for row in found.methods]
    assert names[:4] == ["base", "base, best", "base, safety", "base, warns"] and len(names) == 5
    rsbench, siuo = found.columns
    assert all(set(row.cells) == {rsbench, siuo} for row in found.methods[:4])
    base, best, safety, warns, trained = found.methods
    assert {found.base_of(row) for row in (best, safety, warns, trained)} == {base}
    marked = [
        (row, column) for row in found.methods for column in row.cells if row.own_teacher(column)
    ]
    assert marked == [(best, siuo), (trained, rsbench)]
    assert trained.cells.keys() == {rsbench}


def test_other_sampling_on_the_same_questions_is_a_row_of_its_own(tmp_path):
    """Greedy answers and eight drawn ones of the base policy, under any name and from any workdir;
    what each benchmark draws by its own protocol is one row all the same.
    """
    hot = {"temperature": 0.7, "samples": 8}
    siuo = {"temperature": 1.0, "samples": 3}
    for home, name, benchmark, decoding in (
        ("a", "rsbench", "rsbench", {"temperature": 0.0}),
        ("a", "siuo", "siuo", siuo),
        ("a", "hot", "rsbench", hot),
        ("b", "before-rsbench", "rsbench", {"temperature": 0.0}),
        ("c", "before-rsbench", "rsbench", hot),
        ("d", "safety-rsbench", "rsbench", {"temperature": 0.0}),
        ("d", "safety-siuo", "siuo", siuo),
        ("e", "safety-rsbench", "rsbench", hot),
    ):
        more = {"benchmark": benchmark, "decoding": {**decoding, "split": benchmark}}
        more["prompt_digest"] = "other" if name.startswith("safety") else "p"
        write_run(tmp_path / home, began_with="base")
        write_evaluation(tmp_path / home, name, risky_rows(2), policy="base", **more)
    found = collect([tmp_path / home for home in "abcde"])
    rows = {row.name: [each.name for each in row.evaluations] for row in found.methods}
    assert rows == {
        "base": ["rsbench", "siuo"],
        "base, hot": ["hot"],
        "base, temperature 0.7, 8 answers": ["before-rsbench"],
        "base, safety (d/safety-rsbench)": ["safety-rsbench", "safety-siuo"],
        "base, safety (e/safety-rsbench)": ["safety-rsbench"],
    }
    base, *others = found.methods
    assert {found.base_of(row) for row in others} == {base}


def test_a_trained_policy_asked_otherwise_is_one_row_over_benchmarks(tmp_path):
    """Its evaluations go by the name in front of the benchmark's."""
    write_run(tmp_path)
    for name, digest in (("after", "p"), ("safety", "other")):
        for benchmark in ("siuo", "rsbench"):
            more = {"benchmark": benchmark, "prompt_digest": digest, "policy": "t"}
            write_evaluation(tmp_path, f"{name}-{benchmark}", risky_rows(2), **more)
    found = collect([tmp_path])
    assert [len(row.cells) for row in found.methods] == [2, 2]
    assert len({row.name for row in found.methods}) == 2
