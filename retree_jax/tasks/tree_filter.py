"""The tree filter stage: a classifier of real against generated trees.

Batches hold real trees (`config.data.source`, augmented as for the tree stage). Generated ones are read once, from
`config.data.generated`, and sampled inside `train_step` with the step's key, so that the loop needs no second iterator and a
resumed run samples the same ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from retree_jax import losses
from retree_jax.data import image_io, splits, transforms
from retree_jax.models import scaling
from retree_jax.tasks import base

_MAX_BYTES = 32 * 2**20  # of generated trees, because they become a constant of the compiled step


def generated_trees(folder, size: tuple[int, int], kind: str = "coverage") -> tuple[np.ndarray, np.ndarray]:
  """Reads generated trees as coverage maps, before thresholding.

  Args:
    folder: output of `python -m retree_jax.generate --tree DIR --num 500 --out FOLDER`.
    size: (height, width) to resize them to, by area averages.
    kind: "coverage", or "fov" for the trees' fields of view; all 255 where the folder holds none.

  Returns:
    (training, held-out), uint8 [N, H, W, 1] each; about one in five is held out, by a hash of its name.

  Raises:
    ValueError: no such folder, or too few trees in it.
  """
  how = "python -m retree_jax.generate --tree runs/tree --num 500 --out runs/trees, and --config.data.generated=runs/trees"
  if not folder:
    raise ValueError(f"config.data.generated is empty: the filter is trained on real and generated trees; make some with {how}")
  folder = epath.Path(folder).expanduser()
  coverage = folder / "coverage"
  names = sorted(p.name for p in coverage.iterdir() if p.suffix == ".png") if coverage.is_dir() else []
  if len(names) < 2:
    raise ValueError(f"{folder} holds no trees in coverage/: make some with {how}")
  limit = max(2, _MAX_BYTES // (size[0] * size[1]))
  if len(names) > limit:
    logging.info("The filter uses the first %d of %d generated trees", limit, len(names))
  train, heldout = splits.hold_out(names[:limit])

  images = folder / kind
  if kind == "fov" and not images.is_dir():
    return tuple(np.full((len(chosen), *size, 1), 255, np.uint8) for chosen in (train, heldout))

  def read(chosen):
    pixels = [image_io.decode((images / name).read_bytes(), str(images / name)) for name in chosen]
    return np.stack([transforms.area_resize(p if p.ndim == 3 else p[..., None], size)[..., :1] for p in pixels])

  return read(train), read(heldout)


class TreeFilterTask(base.Task):
  """A patch discriminator of real (1) and generated trees (0), after Alimanov & Islam 2023, with the least-squares loss of Mao
  et al. 2017.

  Args:
    config: besides what `base.Task` reads, `config.loss` and `config.preview`.
    epoch_steps: see `base.Task`; not used.

  Raises:
    ValueError: no generated trees, or a size that the network cannot take.
  """

  fields = ("tree",)

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    self.network.check_size(*self.size)
    self._generated, self._heldout = generated_trees(config.data.generated, self.size)

  def init_parameters(self, key):
    return self.network.init(key, jnp.zeros((1, *self.size, 1)))

  def prepare(self, batch, key) -> dict:
    """As many generated as real trees, both [B, H, W, 1] in [-1, 1], plus noise."""
    n = len(batch["tree"])
    key_row, key_flip, key_real, key_generated = jax.random.split(key, 4)
    generated = jnp.asarray(self._generated)[jax.random.randint(key_row, (n,), 0, len(self._generated))]
    # Generated trees are flipped only: the tree stage was trained on augmented ones and reproduces the augmentation.
    flip = jax.random.bernoulli(key_flip, self.config.data.augment.horizontal_flip, (n, 1, 1, 1))
    generated = jnp.where(flip, generated[:, :, ::-1], generated)

    def noisy(pixels, key):
      # Without noise, the discriminator would recognise artefacts of sampling that are much smaller than a grey level.
      x = scaling.to_signed(pixels)
      return x + self.config.loss.instance_noise * jax.random.normal(key, x.shape)

    return {"real": noisy(batch["tree"], key_real), "generated": noisy(generated, key_generated)}

  def loss(self, params, prepared):
    real, generated = (self.network.apply(params, prepared[name]) for name in ("real", "generated"))
    loss = jnp.mean(losses.least_squares_discriminator(real, generated))
    return loss, {"real_score": jnp.mean(real), "generated_score": jnp.mean(generated)}

  def evaluate(self, ema, batch, index) -> dict:
    """Held-out losses and scores of each example, [B] each.

    Args:
      ema: averaged parameters.
      batch: "tree" uint8 [B, H, W, 1], real trees.
      index: [B] numbers of the examples, each of which is compared with one held-out generated tree.
    """
    generated = jnp.asarray(self._heldout)[index % len(self._heldout)]
    real, generated = (self.network.apply(ema, scaling.to_signed(x)) for x in (batch["tree"], generated))
    axes = (1, 2, 3)
    return {
      "loss": losses.least_squares_discriminator(real, generated),
      "real_score": jnp.mean(real, axes),
      "generated_score": jnp.mean(generated, axes),
    }

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Held-out trees in order of falling score: {name: uint8 images [N, H, W, 1]}."""
    del mesh
    out = {}
    for name, pixels in (("real_tree", batch["tree"]), ("generated_tree", self._heldout)):
      pixels = np.asarray(pixels[: self.config.preview.num])
      scores = np.mean(self.network.apply(ema, scaling.to_signed(jnp.asarray(pixels))), axis=(1, 2, 3))
      out[f"{name}_best_first"] = pixels[np.argsort(-scores, kind="stable")]
    return out
