"""Tiny stages with random weights, saved as checkpoints: what the generator's tests run on."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from retree_jax import checkpoint, models
from retree_jax.data import writing
from tests import small

CHANNELS = {"image": 3, "tree": 1, "fov": 1}


def _save(path: pathlib.Path, config, x_channels: int, cond_channels: int, settings: dict, seed: int) -> None:
  """Random weights, not the initial ones: those of a denoiser give 0 for every input."""
  network, (h, w) = models.build(settings), config.data.image_size
  cond = jnp.zeros((1, h, w, cond_channels)) if cond_channels else None
  params = network.init(jax.random.key(seed), jnp.zeros((1, h, w, x_channels)), jnp.zeros((1,)), cond)
  rng = np.random.default_rng(seed)

  def drawn(x):
    return x if x.ndim < 2 else jnp.asarray(rng.normal(0, np.sqrt(x.shape[-1] / x.size), x.shape), jnp.float32)

  params = jax.tree.map(drawn, params)
  checkpoint.export(checkpoint.Loaded(config, params, network, 3, ""), path)


def denoiser(path, stage: str, target, condition=(), size=(16, 16), seed: int = 0) -> None:
  """Saves a denoising stage of a few thousand parameters and two sampling steps."""
  config = small.config(
    data__target=tuple(target),
    data__condition=tuple(condition),
    data__image_size=size,
    diffusion__condition_dropout=0.1 if condition else 0.0,
  )
  config.stage = stage
  config.sampler.batch_size = 2
  channels, given = (sum(CHANNELS[f] for f in names) for names in (target, condition))
  _save(path, config, channels, given, {**config.model, "out_channels": channels}, seed)


def tree_filter(path, threshold: float, size=(32, 32), ranges=None) -> None:
  """Saves a filter with bounds of one's own choice."""
  config = small.config(data__image_size=size)
  config.stage = "filter"
  del config["diffusion"]
  config.model = ConfigDict({"name": "discriminator", "width": 4, "heads": 1, "head_width": 4})
  _save(path, config, 1, 0, dict(config.model), 0)
  identity = checkpoint.load(path).identity()
  writing.write_json(
    path / "threshold.json",
    {"checkpoint": identity, "threshold": threshold, "how": "by hand, for a test", "ranges": ranges or {}},
  )


@functools.lru_cache
def chain(root: pathlib.Path) -> dict[str, str]:
  """Tree (with its field of view) and fundus stage and a filter that keeps about half, by the command's flags."""
  denoiser(root / "tree", "tree", ("tree", "fov"), seed=1)
  denoiser(root / "fundus", "fundus", ("image",), ("tree", "fov"), seed=2)
  tree_filter(root / "filter", 0.5)
  return {name: str(root / name) for name in ("tree", "fundus", "filter")}


def files(folder) -> dict[str, bytes]:
  """Every file under a folder by its relative path, hidden ones too."""
  folder = pathlib.Path(folder)
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def manifest(folder) -> list[dict]:
  """The lines of a manifest."""
  return [json.loads(line) for line in (pathlib.Path(folder) / "manifest.jsonl").read_text().splitlines()]
