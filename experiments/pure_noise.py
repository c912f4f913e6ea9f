"""What a diffusion stage sees in pure noise, which holds nothing: it should be the mean eye, whatever the noise.

    python -m experiments.pure_noise --stage tree            # a workdir or the name of shipped weights

Where the last time step is pure noise (`config.diffusion.zero_terminal_snr`), the best prediction there is the mean of the
training data. What differs from one noise to the next was never learnt, and is what the first sampling step starts from.
Prints, for each field that the stage makes, the mean of the prediction over pixels and noises, and its spread: the standard
deviation over noises of the means of 8×8 blocks. Units of [0, 1]. A stage with a condition is given an empty tree in a whole
disc.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import checkpoint, keys
from retree_jax.cli import errors
from retree_jax.data import field_of_view
from retree_jax.data.fields import num_channels, split_channels
from retree_jax.diffusion import process
from retree_jax.inference.sampler import make_schedule

_BLOCK = 8  # pixels


def predicted(loaded, num: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
  """What a stage predicts from pure noise.

  Args:
    loaded: `checkpoint.Loaded` of a diffusion stage.
    num: number of noises.
    seed: root of the noises.

  Returns:
    Each field of `config.data.target`, float32 [num, H, W, C] in about [0, 1].
  """
  config = loaded.config
  size, target = tuple(config.data.image_size), tuple(config.data.target)
  schedule = make_schedule(config.diffusion)
  last = config.diffusion.num_steps - 1
  alpha, sigma = schedule.alpha_sigma(jnp.float32(last))
  given = {"tree": np.zeros((*size, 1), np.uint8), "fov": field_of_view.inscribed(size, min(size))}
  cond = np.concatenate([given[f] for f in config.data.condition], -1)[None] / 127.5 - 1.0 if config.data.condition else None

  @jax.jit
  def one(params, key):
    x = keys.normal(key[None], (*size, num_channels(target)))
    answer = loaded.network.apply(params, x, jnp.full((1,), float(last)), cond)
    return process.to_x0(answer, x, alpha, sigma, config.diffusion.prediction)[0]

  x0 = np.stack([one(loaded.params, key) for key in keys.per_sample(seed, np.arange(num), "pure noise")])
  return split_channels((x0 + 1.0) / 2.0, target)


def spread(pictures: np.ndarray) -> float:
  """Standard deviation over pictures [N, H, W, C] of their blocks' means, root mean square over the blocks."""
  n, h, w, c = pictures.shape
  pictures = pictures[:, : h - h % _BLOCK, : w - w % _BLOCK]
  blocks = pictures.reshape(n, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK, c).mean((2, 4))
  return float(np.sqrt(np.mean(np.var(blocks, axis=0))))


def main() -> None:
  """Reads the flags and prints a table."""
  p = argparse.ArgumentParser(prog="python -m experiments.pure_noise", description=__doc__.split("\n\n")[0])
  p.add_argument("--stage", required=True, help="workdir or name of a tree or fundus stage")
  p.add_argument("--num", type=int, default=16, help="number of noises")
  args = p.parse_args()
  if args.num < 2:
    raise ValueError(f"--num={args.num} has no spread: give at least 2")
  loaded = checkpoint.load(args.stage)
  if loaded.config.stage not in ("tree", "fundus"):
    raise ValueError(f"the {loaded.config.stage} stage {args.stage} paints nothing from noise: give a tree or fundus stage")
  found = predicted(loaded, args.num)
  print("| field | mean | spread over noises |\n|---|---|---|")
  for field, pictures in found.items():
    print(f"| {field} | {pictures.mean():.3f} | {spread(pictures):.3f} |")


if __name__ == "__main__":
  sys.exit(errors.run(main))
