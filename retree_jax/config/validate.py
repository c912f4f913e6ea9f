"""Valid values of the fields of a config. Checked before a workdir is claimed, data are read or anything is compiled.

Only fields that the config has are checked. What is valid in one stage alone is checked by that stage's task.
"""

import math

from retree_jax import keys
from retree_jax.data import transforms
from retree_jax.diffusion import samplers, schedules

# Conditions on numbers, by the words of the message.
_SHARE, _OPEN_SHARE = "at least 0 and below 1", "above 0 and below 1"
_KINDS = {
  "at least -1": lambda v: v >= -1,
  "at least 0": lambda v: v >= 0,
  "at least 1": lambda v: v >= 1,
  "above 0": lambda v: v > 0,
  "below 1": lambda v: v < 1,
  "at most 1": lambda v: v <= 1,
  _SHARE: lambda v: 0 <= v < 1,
  "from 0 to 1": lambda v: 0 <= v <= 1,
  _OPEN_SHARE: lambda v: 0 < v < 1,
  "above 0 and at most 1": lambda v: 0 < v <= 1,
}

_OPTIMIZER = {
  "name": ("adamw", "muon"),
  "learning_rate": "above 0",
  "warmup_steps": "at least 0",
  "b1": _SHARE,
  "b2": _SHARE,
  "eps": "above 0",
  "weight_decay": "at least 0",
  "clip_norm": "at least 0",
}

# section -> field -> what it may be: a kind of number (see `_KINDS`), or the words that are valid.
_FIELDS = {
  "data": {
    "fit": transforms.MODES,
    "views": "at least 0",
    "num_threads": "at least -1",
    "num_processes": "at least 0",
    "cache_gib": "at least 0",
    "prefetch": "at least 1",
    "crop": "at least 0",
    "crops": "at least 1",
  },
  "train": {
    "num_steps": "at least 0",
    "batch_size": "at least 1",
    "accumulate": "at least 1",
    "ema_decay": _SHARE,
    "rtt_repeats": "at least 1",
  },
  "optimizer": _OPTIMIZER,
  "discriminator_optimizer": _OPTIMIZER,
  "evaluate": {"every": "at least 0", "num": "at least 1"},
  "preview": {"every": "at least 0", "num": "at least 1"},
  "checkpoint": {"every": "at least 1", "keep_best": "at least 0"},
  "log": {"every": "at least 1", "profile_start": "at least 1", "profile_steps": "at least 0"},
  "diffusion": {
    "time_sampling": ("stratified", "uniform"),
    "first_step": "at least 0",
    "condition_dropout": _SHARE,
    "attribute_dropout": _SHARE,
    "attribute_noise": "at least 0",
    "condition_blur": "at least 0",
    "condition_noise": "at least 0",
  },
  "loss": {
    "mse": "at least 0",
    "l1": "at least 0",
    "min_snr_gamma": "at least 0",
    "outside_fov": "at least 0",
    "instance_noise": "at least 0",
    "bce": "at least 0",
    "dice": "at least 0",
    "jaccard": "at least 0",
    "cldice": "at least 0",
    "cldice_iterations": "at least 0",
    "positive_weight": "above 0",
    "penalty_weight": "at least 0",
    "penalty_every": "at least 1",
  },
  "sampler": {
    "name": samplers.NAMES,
    "spacing": schedules.SPACINGS,
    "clip": samplers.CLIPS,
    "num_steps": "at least 1",
    "eta": "from 0 to 1",
    "guidance": "at least 0",
    "time_shift": "above 0 and at most 1",
    "condition_level": "from 0 to 1",
    "condition_haze": _SHARE,
    "cut_share": "at most 1",
    "condition_haze_whole": "below 1",
    "batch_size": "at least 1",
    "block": "at least 0",
    "overlap": "at least 0",
    "flips": (1, 2, 4),
    "mask_threshold": _OPEN_SHARE,
    "threshold": _OPEN_SHARE,
    "draws": "at least 1",
  },
  "crop": {"size": "at least 0"},
  "filter": {"pass_rate": "above 0 and at most 1", "threshold": _SHARE},
}


def check(config) -> None:
  """Raises ValueError for the first field with an invalid value; the sentence says what is valid."""
  for section, fields in _FIELDS.items():
    for name, allowed in fields.items():
      if section not in config or name not in config[section]:
        continue
      value = config[section][name]
      field = f"config.{section}.{name}={value!r}"
      if not isinstance(allowed, str):
        if value not in allowed:
          raise ValueError(f"{field} is unknown: use {', '.join(map(str, allowed))}")
      elif not (math.isfinite(value) and _KINDS[allowed](value)):
        raise ValueError(f"{field} is invalid: it must be {allowed}")
  if "sampler" in config and "seed" in config.sampler:
    keys.check_seed(config.sampler.seed, "config.sampler.seed")
  if "degradation" in config.get("data", {}) and not 0 <= (p := config.data.degradation.probability) <= 1:
    raise ValueError(f"config.data.degradation.probability={p} is invalid: it must be from 0 to 1")
  if "diffusion" in config and config.diffusion.first_step >= config.diffusion.num_steps:
    raise ValueError(
      f"config.diffusion.first_step={config.diffusion.first_step} leaves no time step of "
      f"config.diffusion.num_steps={config.diffusion.num_steps}: use a smaller one"
    )
