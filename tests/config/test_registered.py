"""What a config names: registered values by a word, a user's own by `module:Class`."""

import sys

import pytest

from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.errors import RunFailure, UserError

WORDS = {"apple": 1, "pear": 2}
FIELD = "fruit.kind"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a package in it."""
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden" / "tree.py").write_text("class Plum:\n    class Stone:\n        pass\n")
    (tmp_path / "garden" / "broken.py").write_text("raise OSError('no\\nwater')\n")
    (tmp_path / "garden" / "needy.py").write_text("import no_such_package_of_all\n")
    (tmp_path / "garden" / "leaving.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "garden"]:
        del sys.modules[name]


def test_a_word_or_a_module_of_the_working_directory(here):
    """Both are found, attributes of attributes too; the search path is left as it was."""
    before = list(sys.path)
    assert find_registered("pear", WORDS, FIELD) == 2
    plum = find_registered("garden.tree:Plum", WORDS, FIELD)
    assert plum.__module__ == "garden.tree"
    assert find_registered("garden.tree:Plum.Stone", WORDS, FIELD) is plum.Stone
    assert sys.path == before


@pytest.mark.parametrize(
    "spec, said",
    [
        ("peer", "fruit.kind='peer' does not exist; kinds: apple, pear; did you mean pear?"),
        ("", "fruit.kind='' does not exist; kinds: apple, pear"),
        ("cellar:Plum", "there is no module cellar, neither in HERE nor installed"),
        ("garden.shed:Plum", "there is no module garden.shed, neither in HERE nor installed"),
        ("garden.tree:Cherry", "tree.py has no Cherry"),
        ("garden.tree:Plum.Leaf", "Plum'> has no Leaf"),
        ("garden.broken:Plum", "importing garden.broken raises OSError: no water"),
        ("garden.needy:Plum", "importing garden.needy raises ModuleNotFoundError: No module named"),
        ("garden.leaving:Plum", "importing garden.leaving raises SystemExit"),
        ("garden/tree.py:Plum", "is not module:Class, as in my_module:MyClass"),
        ("garden.tree.py:Plum", "is not module:Class, as in my_module:MyClass"),
        ("garden.tree:", "is not module:Class, as in my_module:MyClass"),
    ],
)
def test_every_mistake_is_one_line_that_names_the_field(here, spec, said):
    """A name that nobody knows, no such module or attribute, a module that fails, no names."""
    with pytest.raises(UserError) as caught:
        find_registered(spec, WORDS, FIELD)
    line = str(caught.value)
    assert said.replace("HERE", str(here)) in line and line.startswith(f"fruit.kind={spec!r}")
    assert "\n" not in line


def test_a_factory_that_fails_is_the_users_unless_it_says_otherwise():
    """An unexpected error is one line; RunFailure (a server that is down) stays what it is."""

    def down():
        raise RunFailure("no answer")

    with pytest.raises(UserError, match="fruit.kind='a:b': calling it raises TypeError"):
        call_factory(lambda needed: None, "a:b", FIELD)
    with pytest.raises(RunFailure, match="no answer"):
        call_factory(down, "a:b", FIELD)
