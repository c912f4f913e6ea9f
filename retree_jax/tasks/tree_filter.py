"""The tree filter's training: real trees against generated ones.

The loop's batches bring the real trees (`config.data.source`, augmented as for the tree stage). The generated ones
are read once, from `config.data.generated`, and drawn by the step's key inside `train_step`: so the loop needs no
second iterator, and a resumed run draws the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from retree_jax import keys, losses, models, state
from retree_jax.data import image_io, splits, transforms
from retree_jax.tasks import batches

_MAX_BYTES = 32 * 2**20  # of generated trees: they become a constant of the compiled step


def generated_trees(folder, size: tuple[int, int], kind: str = "coverage") -> tuple[np.ndarray, np.ndarray]:
  """Reads the trees that a tree stage drew, as it drew them: coverage, before it was made a mask.

  Args:
    folder: what `python -m retree_jax.generate --tree DIR --num 500 --out FOLDER` wrote.
    size: (height, width) to bring them to, by area averages.
    kind: "fov" for the trees' fields of view instead; whole frames where they are not in the folder.

  Returns:
    (for training, held out), uint8 [N, H, W, 1] each; about one in five is held out, by a hash of its name.

  Raises:
    ValueError: no such folder, or too few trees in it.
  """
  how = "python -m retree_jax.generate --tree runs/tree --num 500 --out runs/trees, and --config.data.generated=runs/trees"
  if not folder:
    raise ValueError(f"config.data.generated is empty: the filter learns from real and generated trees; make some with {how}")
  folder = epath.Path(folder).expanduser()
  coverage = folder / "coverage"
  names = sorted(p.name for p in coverage.iterdir() if p.suffix == ".png") if coverage.is_dir() else []
  if len(names) < 2:
    raise ValueError(f"{folder} holds no trees in coverage/: make some with {how}")
  limit = max(2, _MAX_BYTES // (size[0] * size[1]))
  if len(names) > limit:
    logging.info("The filter uses the first %d of %d generated trees", limit, len(names))
  train, heldout = splits.hold_out(names[:limit])

  found = folder / kind
  if kind == "fov" and not found.is_dir():
    return tuple(np.full((len(chosen), *size, 1), 255, np.uint8) for chosen in (train, heldout))

  def read(chosen):
    pixels = [image_io.decode((found / name).read_bytes(), str(found / name)) for name in chosen]
    return np.stack([transforms.area_resize(p if p.ndim == 3 else p[..., None], size)[..., :1] for p in pixels])

  return read(train), read(heldout)


class TreeFilterTask:
  """A patch discriminator that tells real trees (1) from generated ones (0), after Alimanov & Islam 2023; least squares as
  in Mao et al. 2017.

  Args:
    config: `config.model` names the discriminator; `config.data`, `config.loss`, `config.optimizer` and `config.train` are
      read.

  Raises:
    ValueError: no generated trees, or a size that the network cannot take.
  """

  fields = ("tree",)

  def __init__(self, config):
    self.config = config
    self.size = tuple(config.data.image_size)
    self.network = models.build(config.model)
    self.network.check_size(*self.size)
    self.optimizer = state.make_optimizer(config.optimizer)
    self._generated, self._heldout = generated_trees(config.data.generated, self.size)

  def init(self, seed_key) -> state.TrainState:
    """A fresh state; `seed_key` is the run's root key."""
    params = self.network.init(keys.at_step(seed_key, 2**31 - 1), jnp.zeros((1, *self.size, 1)))
    return state.TrainState(
      step=jnp.int32(0),
      params=params,
      ema=state.start_ema(params, self.config.train.ema_decay),
      opt_state=self.optimizer.init(params),
      key=seed_key,
      extra={},
    )

  def train_step(self, current: state.TrainState, batch) -> tuple[state.TrainState, dict]:
    """One batch of real trees and as many generated ones: descend, average. A pure function.

    Args:
      current: the state.
      batch: "tree" uint8 [B, H, W, 1].

    Returns:
      The next state and scalar metrics.
    """
    draw = self._draw(batch["tree"], keys.at_step(current.key, current.step))
    loss, metrics, grads = state.value_and_gradients(self._loss, current.params, draw, self.config.train.accumulate)
    updates, opt_state = self.optimizer.update(grads, current.opt_state, current.params)
    params = jax.tree.map(jnp.add, current.params, updates)
    ema = state.ema_update(current.ema, params, current.step, self.config.train.ema_decay)
    following = current.replace(step=current.step + 1, params=params, ema=ema, opt_state=opt_state)
    return following, {"loss": loss, **metrics}

  def _draw(self, real, key) -> dict:
    """Real trees beside generated ones, both [B, H, W, 1] in [-1, 1]."""
    n = real.shape[0]
    key_row, key_flip, key_real, key_generated = jax.random.split(key, 4)
    generated = jnp.asarray(self._generated)[jax.random.randint(key_row, (n,), 0, len(self._generated))]
    # A generated tree is a finished product, so it is mirrored at most; real ones come augmented as its model saw them.
    flip = jax.random.bernoulli(key_flip, self.config.data.augment.horizontal_flip, (n, 1, 1, 1))
    generated = jnp.where(flip, generated[:, :, ::-1], generated)

    def noised(pixels, key):
      # Without noise the discriminator would tell them by traces of sampling far below a grey level that matters.
      x = batches.to_signed(pixels)
      return x + self.config.loss.instance_noise * jax.random.normal(key, x.shape)

    return {"real": noised(real, key_real), "generated": noised(generated, key_generated)}

  def _loss(self, params, draw):
    """(mean loss, metrics) of real and generated trees."""
    real, generated = (self.network.apply(params, draw[name]) for name in ("real", "generated"))
    loss = jnp.mean(losses.least_squares_discriminator(real, generated))
    return loss, {"real_score": jnp.mean(real), "generated_score": jnp.mean(generated)}

  def evaluate(self, ema, batch, index) -> dict:
    """Held-out losses and scores of each example, [B] each.

    Args:
      ema: averaged parameters.
      batch: "tree" uint8 [B, H, W, 1], real trees.
      index: [B] the examples' numbers, each of which is set against one held-out generated tree.
    """
    generated = jnp.asarray(self._heldout)[index % len(self._heldout)]
    real, generated = (self.network.apply(ema, batches.to_signed(x)) for x in (batch["tree"], generated))
    axes = (1, 2, 3)
    return {
      "loss": losses.least_squares_discriminator(real, generated),
      "real_score": jnp.mean(real, axes),
      "generated_score": jnp.mean(generated, axes),
    }

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Held-out trees from the best score to the worst, uint8 [N, H, W, 1], by name."""
    del mesh
    out = {}
    for name, pixels in (("real_tree", batch["tree"]), ("generated_tree", self._heldout)):
      pixels = np.asarray(pixels[: self.config.preview.num])
      scores = np.mean(self.network.apply(ema, batches.to_signed(jnp.asarray(pixels))), axis=(1, 2, 3))
      out[f"{name}_best_first"] = pixels[np.argsort(-scores, kind="stable")]
    return out
