"""The refinement stage: a coarse tree (coverage) → the whole tree at twice the size.

    python -m retree_jax.main --config configs/refine.py:tiny                      # phantom retinas, CPU minutes
    python -m retree_jax.main --config configs/refine.py:cpu --config.data.source=folder:PATH    # 128 → 256, CPU hours
    python -m retree_jax.main --config configs/refine.py --config.data.source=folder:PATH        # 128 → 256, accelerators

For 256 → 512: `--config.data.image_size="(512, 512)" --config.train.start_from=WORKDIR`, the workdir of 128 → 256.
"""

from retree_jax.config import defaults

VARIANTS = ("", "tiny", "cpu")


def get_config(variant: str = ""):
  if variant not in VARIANTS:
    raise ValueError(
      f"variant {variant!r} is unknown: write configs/refine.py alone, or with :tiny or :cpu; the paper has no refinement stage"
    )
  c = defaults.base("refine", variant)
  defaults.add_diffusion(c)
  # The mask that holds together (`retree_jax.data.reduction`) and the coverage that later stages take; given the coverage at
  # half the size.
  c.data.target = ("vessels", "tree")
  c.data.condition = ("tree", "fov")
  # Side in pixels of the square crops that are trained on, 0 = whole pictures; how many are cut from each eye of a batch; and
  # whether to turn and mirror them in all eight ways.
  c.data.crop, c.data.crops = 96, 4
  c.data.turns = True
  # How the coarse tree is degraded at level 1: standard deviation of a blur in its pixels, of noise on a scale from -1 to 1.
  # Training draws a level for each eye, and the network is told which.
  c.diffusion.condition_blur = 0.8
  c.diffusion.condition_noise = 0.2
  # The absolute error asks for the median: where a thin vessel may run here or there, that is none.
  c.loss.l1 = 0.0
  # Level at which coarse trees are degraded when sampling.
  c.sampler.condition_level = 0.0
  # Coverage, as a share of a pixel, below which drawn trees are taken for background: real ones have hardly any so faint.
  # The second field is for whole discs (-1 = the same): graders who trace fewer thin vessels leave more of it.
  c.sampler.condition_haze = 0.05
  c.sampler.condition_haze_whole = -1.0
  c.sampler.update(num_steps=8, batch_size=8)
  c.diffusion.shift = 1.5
  c.model.update(name="denoiser", patch=2, widths=(64, 128, 192), blocks=(2,), attention=(), middle=0, dtype="bfloat16")
  c.train.update(batch_size=32, num_steps=20_000, ema_decay=0.999)
  c.optimizer.update(learning_rate=5e-4, warmup_steps=200)
  if variant in ("tiny", "cpu"):
    c.model.update(widths=(32, 64, 96), blocks=(1,), detail=16, time_dim=128, dtype="float32")
    c.train.update(batch_size=4, num_steps=6000, ema_decay=0.99)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    c.evaluate.update(every=500, num=8)
    c.preview.update(every=500, num=4)
    c.checkpoint.every = 100
    c.log.every = 25
    c.sampler.batch_size = 4
  if variant == "tiny":
    c.data.source = "phantom:40"
    c.data.image_size = (128, 128)
    c.data.crop, c.data.crops = 64, 2
    c.train.num_steps = 400
    c.evaluate.every = c.preview.every = 200
  return defaults.complete(c)
