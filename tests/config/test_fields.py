"""Every field of every built-in config, the network's own included, can be set on the command line, one by one."""

import re
import sys

import pytest
from ml_collections import ConfigDict

from retree_jax import main, models, tasks
from retree_jax.cli import config_files, errors
from retree_jax.config import defaults
from tests import small

CONFIGS = [(stage, variant) for stage in config_files.names() for variant in config_files.variants(stage)]


def parsed(monkeypatch, *argv: str):
  """The config that a command line gives."""
  argv = ["retree_jax.main", *argv]
  monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for fields
  flags = main.define_flags()
  errors.parse(flags, argv)
  return flags.config


def leaves(config, prefix=""):
  """[(name, value)] of all fields, "model.widths" and the like."""
  found = []
  for name, value in config.items():
    found += leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [(prefix + name, value)]
  return found


def other(value):
  """Another value of the same type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1
  if isinstance(value, tuple):
    return value[:1] * 3 or (1,)
  return value + "x"


@pytest.mark.parametrize("stage, variant", CONFIGS, ids=[f"{s}:{v}" for s, v in CONFIGS])
def test_every_field_can_be_set(stage, variant, monkeypatch):
  name = f"--config={stage}:{variant}" if variant else f"--config={stage}"
  config = parsed(monkeypatch, name)
  for section in ("model", "discriminator"):
    if section in config:
      wanted = set(models.defaults(config[section].name)) - {"out_channels", "attributes"}
      assert wanted <= set(config[section]), f"{wanted - set(config[section])} of the network cannot be set"
  fields = leaves(config)
  assert len(fields) > 60
  for field, value in fields:
    wanted = other(value)
    found = dict(leaves(parsed(monkeypatch, name, f"--config.{field}={wanted}")))
    assert found == {**dict(fields), field: wanted}, field


@pytest.mark.parametrize("stage, variant", CONFIGS, ids=[f"{s}:{v}" for s, v in CONFIGS])
def test_the_network_takes_the_written_out_settings(stage, variant, monkeypatch):
  config = parsed(monkeypatch, f"--config={stage}:{variant}" if variant else f"--config={stage}")
  assert models.build(config.model).settings == {**models.defaults(config.model.name), **config.model}
  assert defaults.complete(config.copy_and_resolve_references()) == config
  assert tasks.fields(config)


def test_fields_named_in_documentation_and_messages_exist(monkeypatch):
  known = {"config"}
  for stage, variant in CONFIGS:
    for name, _ in leaves(parsed(monkeypatch, f"--config={stage}:{variant}" if variant else f"--config={stage}")):
      parts = name.split(".")
      known |= {".".join(["config", *parts[:end]]) for end in range(1, len(parts) + 1)}
  documents = [*small.ROOT.glob("*.md"), *(small.ROOT / "docs").glob("*.md"), *(small.ROOT / "retree_jax").rglob("*.py")]
  wrong = []
  for path in documents:
    for section, field in re.findall(r"\b(config\.[a-z_]+)\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", path.read_text()):
      is_method = hasattr(ConfigDict, field.rpartition(".")[2])
      if section in known and f"{section}.{field}" not in known and not is_method:
        wrong.append(f"{path.name}: {section}.{field}")
  assert not wrong, sorted(set(wrong))
