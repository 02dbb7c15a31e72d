"""From `--config=FILE[:VARIANT]` and `--config.a.b=value` to a validated config.

The typed overrides are ml_collections' config_flags; the file is found and run here, because
config_flags reports a missing file, a bad variant and a misspelt field as tracebacks, or not at
all. A config file is Python: loading one runs it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import pathlib
import re
import sys
import types
from collections.abc import Container, Iterator, Sequence
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from srpo_jax.config.check import check_field_name, validate
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.errors import UserError, one_line

PACKAGE = pathlib.Path(__file__).resolve().parents[1]  # its folder `configs` holds ours
OVERRIDE = re.compile(r"--?(no)?config\.")


def load_config(spec: str, overrides: Sequence[str] = (), unused: Container[str] = ()) -> Config:
    """The config of `spec` ("configs/x.py" or "configs/x.py:variant") with overrides, validated.

    overrides: ["--config.train.steps=50", ...]; unused: see check.validate. The file is looked for
    as find_config_file says. Raises UserError, always one line.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py:dpo", ["--config.train.steps=50"])
    """
    given, _, variant = spec.partition(":")
    path = _existing(given)
    with _own_folder_importable(path):
        config = _call(_get_config_function(path), path, variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    for item in overrides:
        check_field_name(re.split(r"[=\s]", OVERRIDE.sub("", item))[0])
    config = _apply(config.lock(), list(overrides))
    validate(config, unused)
    return as_config(config)


def find_config_file(given: str) -> pathlib.Path | None:
    """The file of the working directory, else for configs/NAME the one that comes with the package;
    None if there is neither.
    """
    path = pathlib.Path(given)
    packaged = PACKAGE / path
    if path.is_file():
        return path
    return packaged if path.parts[:1] == ("configs",) and packaged.is_file() else None


def _existing(given: str) -> pathlib.Path:
    """Errors: UserError when there is no such file, or it is no program."""
    path = find_config_file(given)
    if path is None:
        path = pathlib.Path(given)
        near = {str(file) for file in path.parent.glob("*.py")}
        near |= {f"configs/{file.name}" for file in (PACKAGE / "configs").glob("*.py")}
        close = difflib.get_close_matches(str(path), sorted(near), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"config file {path} does not exist{hint}")
    if path.suffix != ".py":
        raise UserError(f"config file {path} is not a .py file with a get_config function")
    return path


def _apply(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    values = flags.FlagValues()  # not the global ones: a second call must start afresh
    argv = ["srpo", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(_flag_error_line(str(error))) from None
    parsed: Any = values["config"].value
    return parsed


def _flag_error_line(message: str) -> str:
    """absl's "flag --config.a.b=x: could not convert ..." with our field names and no newline."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): (.*)", message, re.DOTALL)
    if found and found[1] in FIELDS:
        allowed = FIELDS[found[1]].rule.allowed()
        return f"config.{found[1]} is {one_line(found[2], 300)!r}; allowed is {allowed}"
    return one_line(message, 300)


@contextlib.contextmanager
def _own_folder_importable(path: pathlib.Path) -> Iterator[None]:
    """While the file at `path` runs, `from folder import sibling` finds what lies beside it.

    `configs` is the folder of that name beside the file, then the one beside its folder (or its
    folder itself), and never one that happens to be in the working directory.
    """
    here = path.resolve().parent
    own = [str(at / "configs") for at in (here, here.parent) if (at / "configs").is_dir()]
    hidden = {name: sys.modules.pop(name) for name in _modules_of_configs()}
    sys.modules["configs"] = cast(Any, None)  # importing it fails
    if own:
        sys.modules["configs"] = types.ModuleType("configs")
        sys.modules["configs"].__path__ = own
    sys.path.insert(0, str(here.parent))
    try:
        yield
    finally:
        sys.path.remove(str(here.parent))
        for name in _modules_of_configs():  # the next file may lie beside another configs/common.py
            del sys.modules[name]
        sys.modules.update(hidden)


def _modules_of_configs() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "configs"]


def _get_config_function(path: pathlib.Path):
    """Runs the file."""
    spec = importlib.util.spec_from_file_location("srpo_config_file", path)
    assert spec and spec.loader  # the file ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises, the file is what is wrong
        raise UserError(_failure(error, path)) from None
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"config file {path} has no function get_config")
    return module.get_config


def _call(get_config, path: pathlib.Path, variant: str) -> ConfigDict:
    takes_variant = bool(inspect.signature(get_config).parameters)
    if variant and not takes_variant:
        raise UserError(f"{path} has no variants, but {variant!r} was asked for")
    try:
        return get_config(variant) if variant else get_config()
    except Exception as error:  # as above
        raise UserError(_failure(error, path)) from None


def _failure(error: Exception, path: pathlib.Path) -> str:
    """What a file's exception says, with the line of the file where the trace has one."""
    missing = isinstance(error, ImportError) and (error.name or "").startswith("configs")
    if missing and re.search(r"\bcommon\b|halted", str(error)):
        return (
            f"config file {path} has no configs/common.py beside it: write "
            "`from srpo_jax.configs import common`"
        )
    if isinstance(error, ValueError) and str(error).startswith("unknown variant"):
        return f"config file {path} fails: {one_line(error, 300)}"
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace and not isinstance(error, SyntaxError):
        if pathlib.Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" (line {line})" if line else ""
    return f"config file {path} fails: {type(error).__name__}: {one_line(error, 300)}{place}"
