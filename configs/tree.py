"""The tree stage: noise → vessel tree (and its field of view).

python -m retree_jax.main --config configs/tree.py:tiny                        # phantom retinas, CPU minutes
python -m retree_jax.main --config configs/tree.py:cpu --config.data.source=folder:PATH    # 128×128, CPU hours
python -m retree_jax.main --config configs/tree.py --config.data.source=folder:PATH        # 256×256, accelerators
python -m retree_jax.main --config configs/tree.py:paper --config.data.source=folder:PATH  # the original, 64×64
python -m retree_jax.main --config configs/tree.py --mode sample --num 16                   # PNG trees, a grid, a manifest
"""

from retree_jax.config import defaults


def get_config(variant: str = ""):
  c = defaults.base("tree", variant)
  defaults.add_diffusion(c)

  if variant == "paper":
    # Alimanov & Islam 2023: 64×64 trees alone, ε-prediction on their schedule with T = 800, RTT, AdamW, no EMA.
    c.data.image_size = (64, 64)
    c.data.fit = "crop"
    c.data.target = ("tree",)
    c.data.augment = defaults.no_augmentation()
    c.data.augment.horizontal_flip = c.data.augment.vertical_flip = 0.5
    c.model.update(name="paper_denoiser", dim=4096, time_dim=256)
    c.diffusion.update(
      schedule="paper", num_steps=800, zero_terminal_snr=False, prediction="eps", time_sampling="uniform", first_step=1
    )
    c.loss.min_snr_gamma = 0.0
    c.train.update(batch_size=8, ema_decay=0.0, rtt=True)
    c.optimizer.update(learning_rate=3e-4, warmup_steps=0, b2=0.999, weight_decay=0.01, clip_norm=0.0)
    c.sampler.update(name="ddpm", num_steps=800, spacing="full", clip="none")
    return defaults.complete(c)

  # Our best, sized for one accelerator and up: v-prediction down to pure noise, attention at 32×32 and 16×16.
  defaults.set_denoiser(c, variant)
  # Share of eyes that are cut above and below, where none is asked for; -1 leaves it to the model, which draws the more
  # frequent outline too often.
  c.sampler.cut_share = -1.0
  if variant != "tiny":  # measuring them takes about a second an eye
    c.data.attributes = ("outline", "side", "density", "width", "tortuosity", "fractal_dimension")
  # The absolute error asks for the median: where a thin vessel may run here or there, that is none. With it, trees lose a
  # quarter of their length (docs/sampling.md).
  c.loss.l1 = 0.0
  if variant == "cpu":
    # Noise and detail at 128×128, the U-Net at 64×64, attention at 16×16: 5 images/s on one core.
    c.model.update(middle=3, detail=8)
  return defaults.complete(c)
