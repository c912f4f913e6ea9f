"""The tree filter stage: a classifier of real against generated trees.

Batches hold real trees (`config.data.source`, augmented as for the tree stage). Generated ones are read once, from
`config.data.generated`, and sampled inside `train_step` with the step's key, so that the loop needs no second iterator and a
resumed run samples the same ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import losses, sharding
from retree_jax.data import generated_trees
from retree_jax.models import scaling
from retree_jax.tasks import base


class TreeFilterTask(base.Task):
  """A patch discriminator of real (1) and generated trees (0), after Alimanov & Islam 2023, with the least-squares loss of Mao
  et al. 2017.

  Args:
    config: besides what `base.Task` reads, `config.loss` and `config.preview`.
    epoch_steps: see `base.Task`; not used.

  Raises:
    ValueError: no generated trees, no eyes left to choose a threshold on, or a size that the network cannot take.
  """

  fields = ("tree",)

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    if config.data.heldout != "validation":
      raise ValueError(
        f"config.data.heldout={config.data.heldout!r} leaves no eyes of the train split on which the filter's threshold could "
        "be chosen: use 'validation', with at least two patients in the train split"
      )
    self.network.check_size(*self.size, field="config.data.image_size")
    self._generated, self._heldout = generated_trees.read(config.data.generated, self.size)

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
    score = self.once(mesh, self._scorer)
    out = {}
    for name, pixels in (("real_tree", batch["tree"]), ("generated_tree", self._heldout)):
      pixels = np.asarray(pixels[: self.config.preview.num])
      scores = np.asarray(score(ema, pixels))
      out[f"{name}_best_first"] = pixels[np.argsort(-scores, kind="stable")]
    return out

  def _scorer(self, mesh):
    return jax.jit(
      lambda params, pixels: jnp.mean(self.network.apply(params, scaling.to_signed(pixels)), axis=(1, 2, 3)),
      out_shardings=sharding.replicated(mesh),
    )
