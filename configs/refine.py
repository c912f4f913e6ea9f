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
  defaults.add_cascade(c, variant)
  # The mask that holds together (`retree_jax.data.reduction`) and the coverage that later stages take; given the coverage at
  # half the size.
  c.data.target = ("vessels", "tree")
  c.data.condition = ("tree", "fov")
  # Coverage, as a share of a pixel, below which drawn trees are taken for background: real ones have hardly any so faint.
  # The second field is for whole discs (-1 = the same): graders who trace fewer thin vessels leave more of it.
  c.sampler.condition_haze = 0.05
  c.sampler.condition_haze_whole = -1.0
  c.sampler.num_steps = 8
  c.diffusion.shift = 1.5
  return defaults.complete(c)
