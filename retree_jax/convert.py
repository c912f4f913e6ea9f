"""The original's published PyTorch checkpoints as checkpoints of ours.

    python -m retree_jax.convert --config configs/tree.py:paper --torch tree.pth.tar --out runs/original_tree
    python -m retree_jax.convert --config configs/fundus.py:paper --torch fundus.pth.tar --out runs/original_fundus
    python -m retree_jax.generate --tree runs/original_tree --fundus runs/original_fundus --num 16 --out out

Reads tensors alone, so a file cannot run code. Needs PyTorch: pip install 'retree-jax[torch]'.
"""

import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

from retree_jax.cli import cpu, errors

_FLAGS = flags.FlagValues()  # its own, so that importing this module leaves the flags of others alone
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/STAGE.py:paper, which says how the weights were trained.", flag_values=_FLAGS
)
_TORCH = flags.DEFINE_string("torch", None, "The original's .pth.tar file.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "New folder for the checkpoint.", flag_values=_FLAGS)


def convert(config: ml_collections.ConfigDict, path, out) -> None:
  """Writes a float32 checkpoint that `retree_jax.checkpoint.load` reads.

  Args:
    config: of the stage that the weights are of; its `model` is replaced by what the file's shapes say.
    path: the `.pth.tar` file.
    out: new folder.

  Raises:
    ValueError: the file is not the original's, or its network is of another stage than the config.
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
      f"--config configs/{'filter' if is_filter else 'tree'}.py:paper"
    )
  if not is_filter:
    target = num_channels(config.data.target)
    given = target + num_channels(config.data.condition)
    takes = params["initial_conv"]["kernel"].shape[2]
    if settings["out_channels"] != target or takes != given:
      raise ValueError(
        f"{path} makes {settings['out_channels']} channels, the {config.stage} stage {target}: give the "
        "config of the stage that the weights were trained for"
      )
  config.unlock()
  config.model = ml_collections.ConfigDict({k: v for k, v in settings.items() if k != "out_channels"})
  network = models.build(settings)
  loaded = checkpoint.Loaded(config, params, network, 0, str(path))
  checkpoint.export(loaded, out, dtype=jnp.float32)


def main() -> None:
  """Parses the flags and converts."""
  errors.parse(_FLAGS, sys.argv)
  for flag, value in (("--config", _CONFIG.value), ("--torch", _TORCH.value), ("--out", _OUT.value)):
    if value is None:
      raise ValueError(f"{flag} is missing; see --help")
  convert(_CONFIG.value, _TORCH.value, _OUT.value)
  print(f"wrote {_OUT.value}", flush=True)


if __name__ == "__main__":
  cpu.restart_with_settings("retree_jax.convert")
  sys.exit(errors.run(main))
