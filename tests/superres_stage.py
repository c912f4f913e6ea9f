"""The smallest super-resolution stage, for the tests of its task and of its use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import superres as config_file
from retree_jax import checkpoint, keys, models, tasks
from retree_jax.data import phantom


def config(**changes):
  """The tiny variant, tinier: 16 → 32 pixels; "loss__l1=0" sets `config.loss.l1`."""
  c = config_file.get_config("tiny")
  c.data.update(source="phantom:8", image_size=(32, 32), crop=16, num_threads=0)
  c.model = ConfigDict({"name": "superres", "factor": 2, "width": 8, "depth": 1, "vit_blocks": 0})
  c.discriminator = ConfigDict({"name": "superres_discriminator", "widths": (8,), "vit_blocks": 0, "spectral_norm": False})
  c.loss.penalty = "none"
  c.train.update(batch_size=8, num_steps=4)
  c.optimizer.warmup_steps = c.discriminator_optimizer.warmup_steps = 0
  c.loss.adversarial_start = 2
  c.evaluate.update(every=4, num=2)
  c.preview.update(every=4, num=2)
  c.checkpoint.update(every=2, keep_latest=9)
  c.log.update(every=1, tensorboard=False)
  for name, value in changes.items():
    *path, field = name.split("__")
    functools.reduce(lambda node, key: node[key], path, c)[field] = value
  return c


@functools.lru_cache
def eyes(num: int = 8, size: int = 32) -> dict[str, np.ndarray]:
  drawn = [phantom.eye(seed, (size, size)) for seed in range(num)]
  return {f: np.stack([eye[f] for eye in drawn]) for f in ("image", "tree", "fov")}


def begin(c):
  task = tasks.make(c)
  return task, jax.jit(lambda: task.init(keys.stream(0, "test")))()


def loaded(seed: int = 0, noisy: bool = False) -> checkpoint.Loaded:
  """Random weights; those of a fresh generator give the bicubic enlargement whatever the rest does."""
  c = config(model__noise=noisy)
  network = models.build(c.model)
  params = network.init(jax.random.key(seed), jnp.zeros((1, 16, 16, 4)))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), jnp.float32), params)
  return checkpoint.Loaded(c, params, network, 0, "")
