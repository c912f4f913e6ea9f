"""The built-in configs by name: `--config tree:tiny` works wherever the command is started, in a checkout or installed.

A checkout keeps the files in `configs/` beside the package; the wheel holds them as `retree_jax/configs`.
"""

import importlib.util
import os
import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
  """The folder that holds the built-in configs."""
  inside = _PACKAGE / "configs"
  return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
  """Names of the built-in configs, one per stage."""
  return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def variants(name: str) -> tuple[str, ...]:
  """Variants of a built-in config; "" is the default one."""
  from retree_jax.config import defaults

  return getattr(_module(folder() / f"{name}.py"), "VARIANTS", defaults.VARIANTS)


def find(config: str) -> str:
  """The value of a --config flag with the path of its file.

  Args:
    config: "NAME[:VARIANT]" of a built-in config, "configs/NAME.py[:VARIANT]", or "PATH[:VARIANT]" of any other file.

  Raises:
    ValueError: there is no such config.
  """
  path, colon, variant = config.partition(":")
  if path in names():
    path = str(folder() / f"{path}.py")
  elif not os.path.isfile(path):
    parent, name = os.path.split(path)
    if parent != "configs" or name.removesuffix(".py") not in names() or not name.endswith(".py"):
      raise ValueError(
        f"there is no config file {path}: name one, or a built-in config ({', '.join(names())}), for example --config tree:tiny"
      )
    path = str(folder() / name)
  return path + colon + variant


def load(config: str):
  """The `ConfigDict` that a --config flag with this value gives, for notebooks: `load("tree:tiny")`.

  Raises:
    ValueError: there is no such config or variant.
  """
  path, _, variant = find(config).partition(":")
  return _module(path).get_config(variant)


def _module(path):
  spec = importlib.util.spec_from_file_location("retree_jax_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def resolve(argv: list[str]) -> list[str]:
  """A command line with the paths of the config files that its --config flags name."""
  found, is_config = [], False
  for argument in argv:
    name, equals, value = argument.partition("=")
    if is_config and argument:
      argument = find(argument)
    elif name in ("--config", "-config") and value:
      argument = name + equals + find(value)
    found.append(argument)
    is_config = argument in ("--config", "-config")
  return found
