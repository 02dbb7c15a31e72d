"""What a user gets from `pip install`: a whole package that works from any folder, functions that
can be imported in any order, and old names that say where they went.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from collections.abc import Mapping

import pytest

import srpo_jax
from srpo_jax.moved_names import MOVED
from tests.support import ROOT

PUBLIC = ("evaluate", "explore", "export", "load_config", "train")
BARE = ("configs", "data_pipelines", "launch")  # folders of the checkout, installed in srpo_jax
SOURCES = ("setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "srpo_jax", *BARE)


def _run(
    *argv: object, cwd: pathlib.Path, code: int = 0, env: Mapping[str, str] = os.environ
) -> str:
    """What a program prints, on either stream. It sees srpo_jax only where it is installed."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        cwd=cwd,
        env={name: value for name, value in env.items() if name != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, done.stdout[-3000:]
    return done.stdout


def _python(code: str) -> str:
    """The output of a program in a fresh interpreter, which sees this checkout."""
    return _run(sys.executable, "-c", textwrap.dedent(code), cwd=ROOT)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> pathlib.Path:
    """A copy to build in, links and all: setuptools leaves a folder `build` behind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            no_caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=no_caches)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> pathlib.Path:
    """Made as `pip install .` makes it, but without a network."""
    out = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--use-pep517")
    _run(sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", out, checkout, cwd=out)
    return next(out.glob("srpo_jax-*.whl"))


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory) -> pathlib.Path:
    """Of a fresh environment with the wheel in it. What srpo_jax depends on is that of ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    _run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    ours = [path for path in sys.path if pathlib.Path(path).name == "site-packages"]
    installed = next(folder.glob("lib/python*/site-packages"))
    (installed / "ours.pth").write_text("\n".join(ours) + "\n")
    return folder / "bin"


@pytest.fixture
def busy_folder(tmp_path) -> pathlib.Path:
    """A working directory whose own folders have the names of ours; importing them fails."""
    for name in BARE:
        (tmp_path / name).mkdir()
        for file in ("__init__", "__main__", "common", "records", "spec"):
            (tmp_path / name / f"{file}.py").write_text("raise SystemExit('the wrong file')\n")
    return tmp_path


def _names(wheel: pathlib.Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def test_the_wheel_is_the_package_and_nothing_else(wheel):
    """Every file but notes for readers of the source; nothing beside srpo_jax, like `configs`."""
    listed = os.walk(ROOT / "srpo_jax", followlinks=True)
    files = {pathlib.Path(folder, name) for folder, _, names in listed for name in names}
    wanted = {
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix not in (".md", ".pyc") and "__pycache__" not in path.parts
    }
    assert {"srpo_jax/py.typed", "srpo_jax/configs/ssui_mini.py"} < wanted
    found = _names(wheel)
    assert {name for name in found if ".dist-info/" not in name} == wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in found)


def test_the_source_archive_makes_the_same_wheel(checkout, wheel, tmp_path):
    """sdist, then a wheel from it: nothing is missing in the archive."""
    build = "import sys; from setuptools import build_meta as b; print(b.build_%s(sys.argv[1]))"
    _run(sys.executable, "-c", build % "sdist", tmp_path, cwd=checkout)
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not {*BARE, "tests", "studies"} & {path.name for path in unpacked.iterdir()}
    _run(sys.executable, "-c", build % "wheel", tmp_path, cwd=unpacked)
    assert _names(next(tmp_path.glob("*.whl"))) == _names(wheel)


def test_commands_run_where_folders_have_our_names(bin_folder, busy_folder):
    """`srpo` and its `python -m` forms; our config files, and a user's that starts from them."""
    srpo, module = bin_folder / "srpo", (bin_folder / "python", "-m")
    version = _run(srpo, "--version", cwd=busy_folder)
    assert version == f"srpo_jax {srpo_jax.__version__}\n"
    for name in ("srpo_jax", "srpo_jax.cli"):
        assert _run(*module, name, "--version", cwd=busy_folder) == version
    assert "--dry_run" in _run(srpo, "train", "--help", cwd=busy_folder)
    assert "--submit" in _run(*module, "srpo_jax.launch", "--help", cwd=busy_folder)

    train = (srpo, "train", "--workdir=run")
    said = _run(*train, "--config=configs/ssui_mini.py:nope", cwd=busy_folder, code=2)
    assert "unknown variant 'nope'" in said
    mine = "from srpo_jax.configs import common\ndef get_config(): return common.get_config()\n"
    (busy_folder / "mine.py").write_text(mine)
    said = _run(*train, "--config=mine.py", cwd=busy_folder, code=2)
    assert "config.model.path is empty" in said and said.count("\n") == 1


def test_the_demo_runs_from_an_installed_wheel(bin_folder, busy_folder):
    """The whole road: from the base policy in the wheel to an exported model and a report."""
    small = {
        "explore.num_questions": 2,
        "explore.branches": 2,
        "explore.shards": 1,
        "eval.num_questions": 2,
        "train.steps": 2,
    }
    options = [f"--config.{name}={value}" for name, value in small.items()]
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    printed = _run(bin_folder / "srpo", "demo", *options, cwd=busy_folder, env=os.environ | quick)
    assert set(json.loads(printed.splitlines()[-1])["methods"]) == {"base", "srpo"}
    run = busy_folder / "runs" / "demo" / "round-1"
    assert (run / "report.html").is_file() and (run / "export" / "model.safetensors").is_file()
    looks = json.loads((run / "test_looks.json").read_text())["looks"]
    assert [look["evaluation"] for look in looks] == ["before", "after"]


def test_no_file_imports_our_folders_by_their_bare_names():
    """`import launch` would be a user's own folder, or a second copy of srpo_jax.launch."""
    for path in ROOT.rglob("*.py"):
        if any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            bare = [name for name in names if name.split(".")[0] in BARE]
            assert not bare, f"{path} imports {bare}"


@pytest.mark.parametrize("first", ["srpo_jax.train.loop", "srpo_jax"])
def test_public_functions_work_in_every_order_of_imports(first):
    """Functions and sub-packages share names: whichever is imported first, both are there."""
    said = _python(f"""
        import {first}
        import inspect
        import srpo_jax
        from srpo_jax import evaluate, explore, export, load_config, train
        from srpo_jax.evaluate.evaluate import evaluate as evaluate_function
        from srpo_jax.explore.explore import explore as explore_function
        from srpo_jax.export.export import export as export_function
        from srpo_jax.train import loop, train as train_function
        import srpo_jax.train.checkpoint.manager as manager

        assert train_function is loop.train is srpo_jax.train.loop.train
        assert srpo_jax.train.checkpoint.manager is manager
        for name in ("evaluate", "explore", "export", "train"):
            public, function = getattr(srpo_jax, name), globals()[name + "_function"]
            assert globals()[name] is public
            assert inspect.signature(public) == inspect.signature(function)
            try:
                public(no_such_argument=1)
            except TypeError as error:
                print(error)
        assert load_config is srpo_jax.load_config is srpo_jax.config.load.load_config
    """)
    assert [line.split("()")[0] for line in said.splitlines()] == [
        "evaluate",
        "explore",
        "export",
        "train",
    ]


def test_importing_srpo_jax_loads_nothing_heavy():
    """Nor does looking at its names; a call does."""
    _python("""
        import sys
        import srpo_jax
        assert set(srpo_jax.__all__) <= set(dir(srpo_jax))
        assert callable(srpo_jax.train) and callable(srpo_jax.explore)
        assert not {"jax", "transformers", "numpy", "ml_collections"} & set(sys.modules)
        try:
            srpo_jax.trian
        except AttributeError as error:
            assert str(error) == "module 'srpo_jax' has no attribute 'trian'"
    """)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_show_an_example_that_fits_them(name):
    """The example in the docstring is Python, and calls the function with arguments it takes."""
    public = getattr(srpo_jax, name)
    function = public if name == "load_config" else public._main_function()
    example = str(inspect.getdoc(function)).partition("Example:\n")[2]
    nodes = ast.walk(ast.parse(textwrap.dedent(example)))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) == f"srpo_jax.{name}"]
    assert calls
    for call in calls:
        keywords = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(public).bind(*call.args, **keywords)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_says_where_it_went(old, bin_folder, tmp_path):
    """In one line, imported or run; and the new name is there."""
    python, said = bin_folder / "python", f"ImportError: {old} is now {MOVED[old]}"
    code = f"import importlib.util as u; print(u.find_spec({MOVED[old]!r})); import srpo_jax, {old}"
    printed = _run(python, "-c", code, cwd=tmp_path, code=1).splitlines()
    assert printed[0] != "None" and printed[-1] == said
    if old not in BARE:  # Python would not have looked into srpo_jax
        assert f"({said})" in _run(python, "-m", old, cwd=tmp_path, code=1)


def test_bare_names_in_a_checkout():
    """`python -m launch` still runs there; the other two would be second copies, and say so."""
    assert "--submit" in _run(sys.executable, "-m", "launch", "--help", cwd=ROOT)
    for name in ("configs", "data_pipelines"):
        with pytest.raises(ImportError, match=f"^{name} is now srpo_jax.{name}$"):
            __import__(name)
