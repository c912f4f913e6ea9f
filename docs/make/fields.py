"""The page of all config fields, made from `retree_jax/config/defaults.py`, `configs/*.py` and the networks' docstrings.

The comment above an assignment describes its field, and those of the assignments that follow without a comment of their own.
"""

import ast
import dataclasses
import functools
import inspect
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from retree_jax import models
from retree_jax.cli import config_files
from retree_jax.config import defaults

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PREFIX = {"augmentation": "data.augment."}  # functions of defaults.py whose fields become a section of another's
# Functions of defaults.py that describe fields, and the field or section that shows that a config has them.
_SHARED = {"base": "", "augmentation": "", "add_diffusion": "diffusion", "add_cascade": "sampler.condition_level"}


@dataclasses.dataclass
class Group:
  """Fields that stand below one comment: names ("train.num_steps"), default expressions, and the comment as one paragraph."""

  names: list[str]
  values: list[str]
  text: str


def groups(path: pathlib.Path, function: str) -> list[Group]:
  """The described fields that a function of a file assigns to a config, in order; assignments in branches do not count."""
  source = path.read_text()
  lines = source.splitlines()
  (body,) = (n.body for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function)
  found: list[Group] = []
  after, waiting = None, ""  # the line below the last described assignment or section; a section's comment
  for node in body:
    pairs = _assigned(node, _PREFIX.get(function, ""))
    text = _comment(lines, node.lineno)
    if not pairs:
      if isinstance(node, ast.Assign) and text:  # of a new section: it describes the fields below
        after, waiting = node.end_lineno + 1, text
      continue
    if not text and node.lineno == after:
      text = waiting
    waiting = ""
    if text:
      found.append(Group([], [], text))
    elif node.lineno != after:
      continue
    for name, value in pairs:
      found[-1].names.append(name)
      found[-1].values.append(value)
    after = node.end_lineno + 1
  return found


def _comment(lines: list[str], number: int) -> str:
  """The comment that ends above a line, as one paragraph; "" where there is none."""
  start = number - 1
  while start and re.match(r"\s*#", lines[start - 1]):
    start -= 1
  return " ".join(line.strip().lstrip("#").strip() for line in lines[start : number - 1])


def _assigned(node: ast.stmt, prefix: str) -> list[tuple[str, str]]:
  """(field, default expression) of an assignment to a config's fields; [] for other statements and for new sections."""
  if not isinstance(node, ast.Assign):
    return []
  found = []
  for target in node.targets:
    several = isinstance(target, ast.Tuple)
    targets = target.elts if several else [target]
    values = node.value.elts if several and isinstance(node.value, ast.Tuple) else [node.value] * len(targets)
    for one, value in zip(targets, values, strict=True):
      _, dot, name = ast.unparse(one).partition(".")
      if not dot:
        continue
      if isinstance(value, ast.Call) and ast.unparse(value.func) == "ConfigDict":
        entries = value.args[0] if value.args else ast.Dict([], [])
        found += [(f"{prefix}{name}.{k.value}", ast.unparse(v)) for k, v in zip(entries.keys, entries.values, strict=True)]
      else:
        found.append((prefix + name, ast.unparse(value)))
  return found


@functools.cache
def shared(function: str) -> list[Group]:
  """Groups of a function of `retree_jax/config/defaults.py`."""
  return groups(pathlib.Path(defaults.__file__), function)


def own(stage: str) -> list[Group]:
  """Groups of a stage's config file."""
  path = config_files.folder() / f"{stage}.py"
  functions = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
  return [group for function in functions for group in groups(path, function)]


def network(name: str) -> list[Group]:
  """The settings of a network, from the "Attributes" of its class's docstring."""
  wanted = models.defaults(name)
  text = inspect.getdoc(models._class(name)).partition("Attributes:\n")[2]
  entries = re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", text, re.MULTILINE)
  found = []
  for names, description in entries:
    names = [n for n in names.split(", ") if n in wanted]
    description = " ".join(description.split())
    found.append(Group([f"model.{n}" for n in names], [repr(wanted[n]) for n in names], description))
  return [group for group in found if group.names]


def leaves(config: ConfigDict, prefix: str = "") -> dict:
  """{"train.num_steps": value} of all fields of a config."""
  found = {}
  for name, value in config.items():
    found |= leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
  return found


def config(stage: str, variant: str = "") -> ConfigDict:
  """A built-in config."""
  return runpy.run_path(str(config_files.folder() / f"{stage}.py"))["get_config"](variant)


def described(stage: str, config: ConfigDict) -> set[str]:
  """Names of the fields of a stage's config that have a description."""
  names = {"model.name", "discriminator.name"}
  for function, field in _SHARED.items():
    if not field or any(name.startswith(field) for name in leaves(config)):
      names |= {name for group in shared(function) for name in group.names}
  names |= {name for group in own(stage) for name in group.names}
  for section in ("model", "discriminator"):
    if section in config:
      described_here = {name.partition(".")[2] for group in network(config[section].name) for name in group.names}
      names |= {f"{section}.{name}" for name in described_here}
  return {name for name in leaves(config) if any(name == known or name.startswith(f"{known}.") for known in names)}


def _table(found: list[Group], heading: str = "default") -> list[str]:
  rows = [f"| field | {heading} | meaning |", "| --- | --- | --- |"]
  for group in found:
    names = "<br>".join(f"`{name}`" for name in group.names)
    values = "<br>".join(f"`{value}`" for value in group.values)
    rows.append(f"| {names} | {values} | {_cell(group.text)} |")
  return [*rows, ""]


def _cell(text: str) -> str:
  """A comment as a table cell: with its quoted words as code, and without anything that Markdown would take for markup."""
  quoted = re.split(r'((?<![\w`])"[^"`]*")', text.replace("|", "\\|"))
  return "".join(f"`{part}`" if i % 2 else part.replace("<", "&lt;").replace("*", "\\*") for i, part in enumerate(quoted))


def _variants(stage: str) -> list[str]:
  """A table of the fields whose values differ between the variants of a stage."""
  configs = {variant: leaves(config(stage, variant)) for variant in config_files.variants(stage)}
  names = dict.fromkeys(name for values in configs.values() for name in values)
  heads = [f"`{stage}:{variant}`" if variant else f"`{stage}`" for variant in configs]
  rows = [f"| field | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
  for name in names:
    values = [repr(c[name]) if name in c else "" for c in configs.values()]
    if len(set(values)) > 1 and name != "variant":
      cells = " | ".join(f"`{v}`".replace("|", "\\|") if v else "–" for v in values)
      rows.append(f"| `{name}` | {cells} |")
  return [*rows, ""]


def page() -> str:
  """The page, in Markdown."""
  text = [
    "# Every config field",
    "",
    "This page is made from the comments of `retree_jax/config/defaults.py`, of `configs/*.py` and of the networks. Each field "
    'is a flag: `--config.train.num_steps=500`, `--config.data.image_size="(64, 96)"`. A field that does not exist, or a value '
    "that is not valid, is refused before anything is read or compiled.",
    "",
    "## All stages",
    "",
    *_table(shared("base")),
    "### Augmentation",
    "",
    *_table(shared("augmentation")),
    "## Denoising stages",
    "",
    "The stages `tree`, `refine`, `fundus`, `detail`, and `segmentation:diffusion`. "
    "[Concepts](guide/concepts.md) has the formulas.",
    "",
    *_table(shared("add_diffusion")),
    "The stages `refine` and `detail`, which are given a coarser picture:",
    "",
    *_table(shared("add_cascade")),
  ]
  for stage in config_files.names():
    text += [f"## Stage `{stage}`", ""]
    if mine := own(stage):
      text += ["Fields that this stage adds, or explains anew:", "", *_table(mine, "value")]
    text += ["Fields whose values differ between its variants:", "", *_variants(stage)]
  text += [
    "## Networks",
    "",
    "`config.model.name` chooses the network, and its settings are the fields of `config.model`. The ",
  ]
  text[-1] += "discriminator of `superres` is set in `config.discriminator`."
  for name in models._NETWORKS:
    text += ["", f"### `{name}`", "", *_table(network(name))]
  return "\n".join(text)
