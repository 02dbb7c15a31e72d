"""From `--config=FILE[:VARIANT]` and `--config.a.b=value` to a validated, locked config.

The typed overrides are ml_collections' config_flags; the file is found and run here, because
config_flags reports a missing file, a bad variant and a misspelt field as tracebacks, or not at
all. A config file is Python: loading one runs it.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import pathlib
import re
import sys
from collections.abc import Container, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from srpo_jax.config import check as config_check
from srpo_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
OVERRIDE = re.compile(r"--?(no)?config\.")


def load_config(
    spec: str, overrides: Sequence[str] = (), unused: Container[str] = ()
) -> ConfigDict:
    """The config of `spec` ("configs/x.py" or "configs/x.py:variant") with overrides, validated.

    overrides: ["--config.train.steps=50", ...]; unused: see config_check.validate. Raises
    UserError, always one line.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py:dpo", ["--config.train.steps=50"])
    """
    path, _, variant = spec.partition(":")
    get_config = _get_config_function(pathlib.Path(path))
    config = _call(get_config, path, variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    for item in overrides:
        config_check.check_field_name(re.split(r"[=\s]", OVERRIDE.sub("", item))[0])
    config = _apply(config.lock(), list(overrides))
    config_check.validate(config, unused)
    return config


def _apply(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    values = flags.FlagValues()  # not the global ones: a second call must start afresh
    argv = ["srpo", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(_one_line_flag_error(str(error))) from None
    return values["config"].value


def _one_line_flag_error(message: str) -> str:
    """absl's "flag --config.a.b=x: could not convert ..." with our field names and no newline."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): (.*)", message, re.DOTALL)
    if found and found[1] in config_check.RULES:
        allowed = config_check.RULES[found[1]].allowed()
        return f"config.{found[1]} is {_one_line(found[2])!r}; allowed is {allowed}"
    return _one_line(message)


def _one_line(text: object, limit: int = 300) -> str:
    return " ".join(str(text).split())[:limit]


def _get_config_function(path: pathlib.Path):
    """Runs the file with its own folder's parent importable, so that `configs.common` is found."""
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(path), near, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"config file {path} does not exist{hint}")
    if path.suffix != ".py":
        raise UserError(f"config file {path} is not a .py file with a get_config function")
    spec = importlib.util.spec_from_file_location("srpo_config_file", path)
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    folders = [str(path.resolve().parents[1]), str(REPOSITORY)]
    sys.path[:0] = folders
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises, the file is what is wrong
        raise UserError(f"config file {path} fails: {_where(error, path)}") from None
    finally:
        for folder in folders:
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "configs":
                del sys.modules[name]  # the next file may lie beside another configs/common.py
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"config file {path} has no function get_config")
    return module.get_config


def _call(get_config, path: str, variant: str) -> ConfigDict:
    takes_variant = bool(inspect.signature(get_config).parameters)
    if variant and not takes_variant:
        raise UserError(f"{path} has no variants, but {variant!r} was asked for")
    try:
        return get_config(variant) if variant else get_config()
    except Exception as error:  # as above
        raise UserError(f"config file {path} fails: {_where(error, pathlib.Path(path))}") from None


def _where(error: Exception, path: pathlib.Path) -> str:
    """The message with the line of the config file, where the trace has one."""
    if isinstance(error, ValueError) and str(error).startswith("unknown variant"):
        return _one_line(error)
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace and not isinstance(error, SyntaxError):
        if pathlib.Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {_one_line(error)}{place}"
