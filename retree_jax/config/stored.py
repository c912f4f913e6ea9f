"""Configs as checkpoints store them: as JSON, under the field names of the version that wrote them."""

import hashlib
import json

from retree_jax import models

# Fields that were renamed: former name -> name.
_RENAMED = {"sampler.tree_cut": "sampler.mask_threshold"}

# Configs once stored only the network settings that a variant named, and digests of weights were taken over these. So that a
# config that holds all settings gives the same digest, the others count only where they differ from the network's default.
# Network -> (a setting that only complete configs hold, settings that always count).
_COUNTED = {
  "denoiser": ("remat", ("patch", "widths", "blocks", "attention", "dtype")),
  "paper_denoiser": ("dtype", ("dim", "time_dim")),
  "superres": ("token_width", ("factor", "width", "depth", "vit_blocks", "vit_patch", "noise", "dtype")),
}


def to_json(config) -> dict:
  """A ConfigDict as plain JSON (tuples become lists)."""
  return json.loads(config.to_json_best_effort() if hasattr(config, "to_json_best_effort") else json.dumps(config))


def upgrade(config: dict) -> dict:
  """A stored config with the field names of this version; everything else is as stored."""
  return _renamed(config, _RENAMED)


def digest(config) -> str:
  """First 16 hexadecimal digits of SHA-256 over a config. Renamed fields count under their former name, so that a data set made
  by an earlier version is recognised."""
  stored = _renamed(to_json(config), {new: old for old, new in _RENAMED.items()})
  return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:16]


def counted_settings(model) -> dict:
  """The settings of a network that tell its weights from others, as JSON; see `_COUNTED`."""
  settings = to_json(model)
  mark, always = _COUNTED.get(settings.get("name"), ("", ()))
  if mark not in settings:
    return settings
  defaults = json.loads(json.dumps(models.defaults(settings["name"])))
  return {k: v for k, v in settings.items() if k == "name" or k in always or v != defaults.get(k)}


def first_scored_step(config) -> int:
  """First step whose held-out loss may choose a checkpoint.

  The held-out loss of a GAN leaves out the adversarial term, so it is lowest before the discriminator joins, in states that
  nobody wants. For all other runs it is 0.
  """
  if "discriminator" in config and config["loss"]["adversarial"] > 0:
    return int(config["loss"]["adversarial_start"]) + 1
  return 0


def _renamed(config: dict, names: dict[str, str]) -> dict:
  out = dict(config)
  for old, new in names.items():
    section, former, now = *old.split("."), new.rpartition(".")[2]
    if former in out.get(section, {}):
      out[section] = {now if k == former else k: v for k, v in out[section].items()}
  return out
