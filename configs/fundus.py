"""The fundus stage: tree + field of view + noise → fundus photograph.

    python -m retree_jax.main --config configs/fundus.py:tiny                      # phantom retinas, CPU minutes
    python -m retree_jax.main --config configs/fundus.py:cpu --config.data.source=folder:PATH    # 128×128, CPU hours
    python -m retree_jax.main --config configs/fundus.py --config.data.source=folder:PATH        # 256×256, accelerators
    python -m retree_jax.main --config configs/fundus.py:paper --config.data.source=folder:PATH  # the original, 64×64
    python -m retree_jax.main --config configs/fundus.py --mode sample --input TREES --out PAINTED

Photographs without a tree help too: join them, `folder:LABELLED*4+folder:PHOTOGRAPHS`; the network sees them with the tree
hidden. Label them with a segmenter first (`configs/segmentation.py --mode sample`) and they teach it trees as well.
"""

from retree_jax.config import defaults


def get_config(variant: str = ""):
  c = defaults.base("fundus", variant)
  defaults.add_diffusion(c)
  c.data.target = ("image",)
  c.data.condition = ("tree", "fov")

  if variant == "paper":
    # Alimanov & Islam 2023: 64×64, noisy photograph and tree side by side, ε-prediction, T = 1000, AdamW, no EMA.
    c.data.image_size = (64, 64)
    c.data.fit = "crop"
    c.data.condition = ("tree",)
    c.data.augment = defaults.no_augmentation()
    c.data.augment.horizontal_flip = c.data.augment.vertical_flip = 0.5
    c.model.update(name="paper_denoiser", dim=2048, time_dim=256)
    c.diffusion.update(
      schedule="paper", num_steps=1000, zero_terminal_snr=False, prediction="eps", time_sampling="uniform", first_step=1
    )
    c.loss.min_snr_gamma = 0.0
    c.train.update(batch_size=8, ema_decay=0.0, rtt=True)
    c.optimizer.update(learning_rate=3e-4, warmup_steps=0, b2=0.999, weight_decay=0.01, clip_norm=0.0)
    c.sampler.update(name="ddpm", num_steps=1000, spacing="full", clip="none")
    return defaults.complete(c)

  # Our best, sized for one accelerator and up. v-prediction down to pure noise keeps colours true: with signal left in the last
  # step the network would read the mean colour from it, and sampling starts without any.
  defaults.set_denoiser(c, variant)
  c.diffusion.condition_dropout = 0.1
  c.loss.outside_fov = 0.1
  # The last steps of "trailing" are wide, and blur fine texture (docs/sampling.md).
  c.sampler.spacing = "trailing_fine"
  c.sampler.time_shift = 0.93
  if variant == "cpu":
    c.model.update(middle=2, detail=12)
  return defaults.complete(c)
