"""The tree filter: which generated trees are kept.

    python -m retree_jax.generate --tree runs/tree --num 500 --out runs/trees                          # trees to learn from
    python -m retree_jax.main --config configs/filter.py:tiny --config.data.generated=runs/trees       # phantom trees
    python -m retree_jax.main --config configs/filter.py --config.data.source=folder:PATH --config.data.generated=runs/trees
    python -m retree_jax.generate --tree runs/tree --filter runs/filter --num 1000 --out kept

The variants differ in size, learning rate and training length; `paper` has 64×64 pixels, the original's network and optimizer,
and its threshold of 0.8.
"""

from ml_collections import ConfigDict

from retree_jax.config import defaults


def get_config(variant: str = ""):
  c = defaults.base("filter", variant)
  c.data.target = ("tree",)
  # Folder of generated trees, written by `python -m retree_jax.generate --tree`.
  c.data.generated = ""

  c.loss = ConfigDict()
  # Standard deviation of the noise added to real and generated trees alike, in units of [-1, 1].
  c.loss.instance_noise = 0.1

  c.filter = ConfigDict()
  # Share of held-out real trees that pass the threshold; or a threshold in (0, 1) instead, 0 = none.
  c.filter.pass_rate = 0.95
  c.filter.threshold = 0.0

  # The attention over every pixel of the second layer makes 128×128 the largest size that pays.
  c.data.image_size = (128, 128)
  c.model.update(name="discriminator", width=64, heads=4, head_width=32, depth=1, dtype="bfloat16")
  c.optimizer.update(learning_rate=1e-4, warmup_steps=200, b1=0.5)
  c.train.update(batch_size=32, num_steps=5000, ema_decay=0.999)
  c.evaluate.update(every=500, num=64)
  c.preview.every = 1000
  c.checkpoint.every = 500
  c.log.every = 50

  if variant == "paper":
    # Alimanov & Islam 2023: AdamW, learning rate 1e-5, one tree at a time, no average; a tree is kept above 0.8.
    c.data.image_size = (64, 64)
    c.data.fit = "crop"
    c.data.augment = defaults.no_augmentation()
    c.model.update(head_width=64, dtype="float32")
    c.optimizer.update(learning_rate=1e-5, warmup_steps=0, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=0.0)
    c.train.update(batch_size=1, ema_decay=0.0)
    c.loss.instance_noise = 0.0
    c.filter.threshold = 0.8
  if variant in ("cpu", "tiny"):
    c.data.image_size = (64, 64)
    c.model.update(width=16, heads=2, head_width=16, dtype="float32")
    c.train.update(batch_size=16, num_steps=1000, ema_decay=0.99)
    c.optimizer.update(learning_rate=3e-4, warmup_steps=50)
    c.evaluate.update(every=100, num=32)
    c.preview.update(every=500, num=8)
    c.checkpoint.every = 100
    c.log.every = 25
  if variant == "cpu":
    c.model.update(width=24)
    c.train.update(num_steps=3000, ema_decay=0.995)
  if variant == "tiny":
    c.data.source = "phantom:100"
    c.train.num_steps = 300
  return defaults.complete(c)
