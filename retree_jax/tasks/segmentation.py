"""The segmentation stage: photograph → vessel tree, by a network that sees random windows of the photographs."""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import keys, losses, models, sharding, state
from retree_jax.data.fields import num_channels, split_channels
from retree_jax.inference import tiling
from retree_jax.tasks import batches, views

_CANDIDATES = 4  # places looked at for a window whose middle lies in the field of view


class SegmentationTask:
  """A vessel segmenter trained on windows (`config.crop`) of photographs, with losses on its logits inside the field of view.

  Args:
    config: `config.crop`, `config.loss`, `config.optimizer`, `config.model`, `config.data`, `config.train` and `config.sampler`
      are read.
  """

  fields = ("image", "tree", "fov")

  def __init__(self, config):
    self.config = config
    if tuple(config.data.target) != ("tree",):
      raise ValueError(f"config.data.target={tuple(config.data.target)} cannot be segmented: write ('tree',)")
    self.condition = tuple(config.data.condition)
    if not self.condition or set(self.condition) - {"image", "fov"}:
      raise ValueError(f"config.data.condition={self.condition} cannot be segmented: write ('image',) or ('image', 'fov')")
    self.size = tuple(config.data.image_size)
    self.network = models.build(config.model)
    self.tile = tile_size(config)
    if min(self.size) < max(self.tile):
      raise ValueError(f"config.crop.size={config.crop.size} exceeds config.data.image_size={self.size}: use a smaller window")
    self.network.check_size(*self.tile)
    if config.crop.num < 1:
      raise ValueError(f"config.crop.num={config.crop.num} leaves nothing to learn from: use 1 or more")
    if not any(config.loss[name] for name in ("bce", "dice", "jaccard", "cldice")):
      raise ValueError("all weights in config.loss are 0: set config.loss.bce=1.0")
    self.optimizer = state.make_optimizer(config.optimizer)

  # --- state -----------------------------------------------------------------------------------------------------------

  def init(self, seed_key) -> state.TrainState:
    """A fresh state; `seed_key` is the run's root key."""
    channels = num_channels(self.condition)
    params = self.network.init(keys.at_step(seed_key, 2**31 - 1), jax.ShapeDtypeStruct((1, *self.tile, channels), jnp.float32))
    return state.TrainState(
      step=jnp.int32(0),
      params=params,
      ema=state.start_ema(params, self.config.train.ema_decay),
      opt_state=self.optimizer.init(params),
      key=seed_key,
      extra={},
    )

  # --- training --------------------------------------------------------------------------------------------------------

  def train_step(self, current: state.TrainState, batch) -> tuple[state.TrainState, dict]:
    """One batch: cut windows, descend, average. A pure function, jitted over a mesh by the loop.

    Args:
      current: the state.
      batch: uint8 "image" [B, H, W, 3], "tree" and "fov" [B, H, W, 1].

    Returns:
      The next state and scalar metrics.
    """
    draw = self._windows(batch, keys.at_step(current.key, current.step))
    loss, metrics, grads = state.value_and_gradients(self._loss, current.params, draw, self.config.train.accumulate)
    updates, opt_state = self.optimizer.update(grads, current.opt_state, current.params)
    params = jax.tree.map(jnp.add, current.params, updates)
    ema = state.ema_update(current.ema, params, current.step, self.config.train.ema_decay)
    return current.replace(step=current.step + 1, params=params, ema=ema, opt_state=opt_state), {"loss": loss, **metrics}

  def _windows(self, batch, key) -> dict:
    """Random windows of a batch, [B * num, h, w, C] uint8, and a dropout key for each."""
    fields = dict.fromkeys(("tree", "fov", *self.condition))
    planes = jnp.concatenate([batch[f] for f in fields], axis=-1)
    count, num = planes.shape[0], self.config.crop.num
    window_keys = jax.random.split(key, (count, num))

    def cut(picture, window_key):
      place_key, turn_key = jax.random.split(window_key)
      out = jax.lax.dynamic_slice(picture, (*self._place(picture[..., 1], place_key), 0), (*self.tile, picture.shape[-1]))
      # Vessels run every way, whatever eyes do as a whole.
      return views.turn(turn_key, out) if self.config.crop.turns else out

    cuts = jax.vmap(lambda picture, ks: jax.vmap(lambda k: cut(picture, k))(ks))(planes, window_keys)
    cuts = cuts.reshape(count * num, *cuts.shape[2:])
    return {"key": window_keys.reshape(-1), **split_channels(cuts, fields)}

  def _place(self, fov, key):
    """Upper left corner of a window: of a few random ones the first whose middle lies in the field of view."""
    room = jnp.asarray([s - t + 1 for s, t in zip(self.size, self.tile, strict=True)])
    corners = jax.random.randint(key, (_CANDIDATES, 2), 0, room)
    middles = corners + jnp.asarray(self.tile) // 2
    return corners[jnp.argmax(fov[middles[:, 0], middles[:, 1]] > 0)]

  def _loss(self, params, draw):
    """(mean loss, {"f1"}) of windows."""
    kw = {"key": draw["key"][0]} if self.config.model.get("dropout", 0.0) else {}
    logits = self.network.apply(params, batches.stack_signed(draw, self.condition), **kw)
    tree, fov = batches.to_unit(draw["tree"]), batches.to_unit(draw["fov"])
    return jnp.mean(self._example_losses(logits, tree, fov)), {"f1": jnp.mean(_f1(logits, tree, fov))}

  def _example_losses(self, logits, tree, fov):
    """Weighted loss of each example inside the field of view, [B]; `tree` is a coverage in [0, 1]."""
    c = self.config.loss
    weight = fov + c.outside_fov * (1.0 - fov)
    terms = {
      "bce": lambda: losses.bce_with_logits(logits, tree, c.positive_weight, mask=weight),
      "dice": lambda: losses.dice_with_logits(logits, tree, mask=weight),
      "jaccard": lambda: losses.jaccard_with_logits(logits, tree, mask=weight),
      "cldice": lambda: losses.cldice_with_logits(logits, tree, c.cldice_iterations, mask=weight),
    }
    return sum(c[name] * term() for name, term in terms.items() if c[name])

  # --- looking at it ---------------------------------------------------------------------------------------------------

  def evaluate(self, ema, batch, index) -> dict:
    """Of each held-out example, [B]: the loss and the F1 score at 0.5 inside the field of view, at the config's image size.

    Args:
      ema: averaged parameters.
      batch: as in `train_step`.
      index: not used; here so that all tasks are called alike.
    """
    given = batches.stack_signed(batch, self.condition)
    logits = tiling.tiled(lambda x: self.network.apply(ema, x), given, self.tile, self.config.sampler.overlap)
    tree, fov = batches.to_unit(batch["tree"]), batches.to_unit(batch["fov"])
    return {"loss": self._example_losses(logits, tree, fov), "f1": _f1(logits, tree, fov)}

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Pictures of held-out examples: photographs, traced and predicted trees, uint8 [N, H, W, 1 or 3].

    Args:
      ema: averaged parameters.
      batch: held-out examples as uint8 numpy arrays.
      mesh: devices; every one does the same, all hosts take part.
    """
    count = min(self.config.preview.num, len(batch["image"]))
    batch = {f: batch[f][:count] for f in self.fields}
    find = jax.jit(
      lambda params, given: probabilities(self.config, self.network, params, given), out_shardings=sharding.replicated(mesh)
    )
    found = np.concatenate([np.asarray(find(ema, {f: v[i : i + 1] for f, v in batch.items()})) for i in range(count)])
    pixels = np.rint(found * 255.0).astype(np.uint8)
    return {"given_image": batch["image"], "real_tree": batch["tree"], "predicted_tree": pixels}


def tile_size(config) -> tuple[int, int]:
  """(height, width) of the windows that a network of this config is trained and used on."""
  return (config.crop.size, config.crop.size) if config.crop.size else tuple(config.data.image_size)


def probabilities(config, network, params, batch):
  """Vessel probabilities of photographs, 0 outside the field of view. Jittable.

  Args:
    config: `config.data.condition`, `config.crop` and `config.sampler` are read.
    network: the segmenter.
    params: its parameters.
    batch: uint8 "image" [B, H, W, 3] and "fov" [B, H, W, 1].

  Returns:
    [B, H, W, 1] float32 in [0, 1].
  """

  def vessels(x):
    return tiling.tiled(lambda part: jax.nn.sigmoid(network.apply(params, part)), x, tile_size(config), config.sampler.overlap)

  found = tiling.flip_average(vessels, batches.stack_signed(batch, tuple(config.data.condition)), config.sampler.flips)
  return found * (batch["fov"] >= 128)


def _f1(logits, tree, fov):
  """F1 score of each example inside the field of view, [B]: vessel is where probability, or coverage, is above one half."""
  found, real = (logits > 0) & (fov > 0), (tree >= 0.5) & (fov > 0)
  both, either = (jnp.sum(x, axis=(1, 2, 3), dtype=jnp.float32) for x in (found & real, found.astype(jnp.int32) + real))
  return jnp.where(either > 0, 2.0 * both / jnp.maximum(either, 1.0), 1.0)
