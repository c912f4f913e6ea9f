"""The prediction of a diffusion stage from pure noise, which should be the mean training eye for every noise sample.

    python -m experiments.pure_noise --stage tree            # a workdir or the name of shipped weights

If the last time step is pure noise (`config.diffusion.zero_terminal_snr`), the optimal prediction there is the mean of the
training data. Any variation between noise samples is an error, and the first sampling step starts from it. Prints, for each
field that the stage generates, the mean of the prediction over pixels and noise samples, and its spread: the standard deviation
over noise samples of the means of 8×8 blocks. Values lie in [0, 1]. A stage with a condition receives an empty tree in a whole
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
from retree_jax.models import scaling

_BLOCK = 8  # pixels


def predicted(loaded, num: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
  """Predictions of a stage from pure noise.

  Args:
    loaded: `checkpoint.Loaded` of a diffusion stage.
    num: number of noise samples.
    seed: seed of the noise samples.

  Returns:
    For each field of `config.data.target`, float32 [num, H, W, C], approximately in [0, 1].
  """
  config = loaded.config
  size, target = tuple(config.data.image_size), tuple(config.data.target)
  schedule = make_schedule(config.diffusion)
  last = config.diffusion.num_steps - 1
  alpha, sigma = schedule.alpha_sigma(jnp.float32(last))
  given = {"tree": np.zeros((*size, 1), np.uint8), "fov": field_of_view.inscribed(size, min(size))}
  cond = scaling.stack_signed(given, config.data.condition)[None] if config.data.condition else None

  @jax.jit
  def one(params, key):
    x = keys.normal(key[None], (*size, num_channels(target)))
    answer = loaded.network.apply(params, x, jnp.full((1,), float(last)), cond)
    return process.to_x0(answer, x, alpha, sigma, config.diffusion.prediction)[0]

  x0 = np.stack([one(loaded.params, key) for key in keys.per_sample(seed, np.arange(num), "pure noise")])
  return split_channels((x0 + 1.0) / 2.0, target)


def spread(pictures: np.ndarray) -> float:
  """Standard deviation over images [N, H, W, C] of block means, as root mean square over blocks."""
  n, h, w, c = pictures.shape
  pictures = pictures[:, : h - h % _BLOCK, : w - w % _BLOCK]
  blocks = pictures.reshape(n, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK, c).mean((2, 4))
  return float(np.sqrt(np.mean(np.var(blocks, axis=0))))


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.pure_noise", description=__doc__.split("\n\n")[0])
  p.add_argument("--stage", required=True, help="workdir or name of a tree or fundus stage")
  p.add_argument("--num", type=int, default=16, help="number of noise samples")
  args = p.parse_args()
  if args.num < 2:
    raise ValueError(f"--num={args.num} is too small for a standard deviation: use 2 or more")
  loaded = checkpoint.load(args.stage)
  if loaded.config.stage not in ("tree", "fundus"):
    stage = loaded.config.stage
    raise ValueError(f"{args.stage} is a {stage} stage, which does not start from noise: give a tree or fundus stage")
  found = predicted(loaded, args.num)
  print("| field | mean | spread over noise samples |\n|---|---|---|")
  for field, pictures in found.items():
    print(f"| {field} | {pictures.mean():.3f} | {spread(pictures):.3f} |")


if __name__ == "__main__":
  sys.exit(errors.run(main))
