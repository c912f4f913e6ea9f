"""Converts the PyTorch checkpoints of the original ReTree.

    retree-jax convert --config tree:paper --torch tree.pth.tar --out runs/original_tree
    retree-jax convert --config fundus:paper --torch fundus.pth.tar --out runs/original_fundus
    retree-jax generate --tree runs/original_tree --fundus runs/original_fundus --num 16 --out out

Only tensors are read, so that a file cannot run code. Needs PyTorch: pip install 'retree-jax[torch]'.
"""

import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

from retree_jax.cli import cpu, errors


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  f = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "STAGE:paper: how the weights were trained.", flag_values=f)
  flags.DEFINE_string("torch", None, "The original's .pth.tar file.", flag_values=f)
  flags.DEFINE_string("out", None, "New folder for the checkpoint.", flag_values=f)
  return f


def convert(config: ml_collections.ConfigDict, path, out) -> None:
  """Writes a float32 checkpoint that `retree_jax.checkpoint.load` reads.

  Args:
    config: config of the weights' stage; its `model` is replaced by the settings that the shapes in the file imply.
    path: the `.pth.tar` file.
    out: new folder.

  Raises:
    ValueError: the file is not a checkpoint of the original, or its network belongs to another stage than the config.
    ModuleNotFoundError: PyTorch is not installed.
  """
  import jax.numpy as jnp
  from etils import epath

  from retree_jax import checkpoint, models
  from retree_jax.data.fields import num_channels
  from retree_jax.models import torch_import

  if epath.Path(out).exists():
    raise ValueError(f"{out} exists already: name a new folder with --out")
  settings, params = torch_import.convert(torch_import.read(path))
  config = config.copy_and_resolve_references()
  is_filter = settings["name"] == "discriminator"
  if is_filter != (config.stage == "filter"):
    raise ValueError(
      f"{path} holds a {settings['name']}, which the {config.stage} stage does not use: give "
      f"--config {'filter' if is_filter else 'tree'}:paper"
    )
  if not is_filter:
    target = num_channels(config.data.target)
    given = target + num_channels(config.data.condition)
    in_channels = params["initial_conv"]["kernel"].shape[2]
    if settings["out_channels"] != target or in_channels != given:
      raise ValueError(
        f"the network in {path} has {in_channels} input and {settings['out_channels']} output channels, the {config.stage} "
        f"stage {given} and {target}: give the config of the stage that the weights were trained for"
      )
  config.unlock()
  config.model = ml_collections.ConfigDict({k: v for k, v in settings.items() if k != "out_channels"})
  network = models.build(settings)
  loaded = checkpoint.Loaded(config, params, network, 0, str(path))
  checkpoint.export(loaded, out, dtype=jnp.float32)


def main() -> None:
  """Parses the flags in `sys.argv` and converts."""
  f = define_flags()
  errors.parse(f, sys.argv, __doc__)
  for name in ("config", "torch", "out"):
    if f[name].value is None:
      raise ValueError(f"--{name} is missing; see --help")
  convert(f.config, f.torch, f.out)
  print(f"wrote {f.out}", flush=True)


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
