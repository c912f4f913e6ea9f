"""Which run a workdir belongs to, and what a resumed run may change.

WORKDIR/config.json   the run's config
WORKDIR/data.json     fingerprints of its data, so that the same files at another path are recognised
"""

import json
import shlex
from collections.abc import Mapping

import ml_collections
from etils import epath

from retree_jax import models
from retree_jax.config import stored
from retree_jax.data import writing

# Prefixes of fields that a resumed run may change without a word: how long, how often and where.
_FREE = (
  "train.num_steps",
  "train.start_from",
  "log.",
  "checkpoint.",
  "sampler.",
  "mesh.",
  "evaluate.",
  "preview.",
  "data.num_threads",
  "data.num_processes",
  "data.cache_gib",
  "data.prefetch",
  "name",
)
# Fields that it may change too, and says so: how the optimizer descends and how the hardware is used. The parameters stay
# those of the same network, trained for the same goal on the same data.
_OPTIMIZER = ("learning_rate", "warmup_steps", "schedule", "decay_steps", "weight_decay", "clip_norm")
_REPORTED = (
  "train.batch_size",
  "train.accumulate",
  *(f"{section}.{field}" for section in ("optimizer", "discriminator_optimizer") for field in _OPTIMIZER),
  *(f"{section}.{field}" for section in ("model", "discriminator") for field in ("dtype", "remat")),
)
# Prefixes of fields on which the shapes of the parameters depend.
_SHAPING = ("stage", "model.", "data.target", "data.condition", "data.attributes")
# Fields that name files: compared by what they hold, not as text.
_DATA = ("data.source", "data.generated", "loss.perceptual_weights")


def check(
  workdir, config: ml_collections.ConfigDict, data: Mapping[str, str] | None = None, same_names: bool = False
) -> list[str]:
  """Checks that the run in a workdir, if there is one, is the run of this config.

  Args:
    workdir: folder of the run.
    config: the config.
    data: fingerprints of the files behind "data.source", "data.generated" and "loss.perceptual_weights"
      (`retree_jax.data.fingerprint`), as far as they are known.
    same_names: whether the names of the examples are those that the newest checkpoint was saved with: what counts for a run
      whose fingerprints were never written.

  Returns:
    Sentences about what has changed and may: for the user to read.

  Raises:
    ValueError: the workdir belongs to another run; the sentence names the fields that differ.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    return []
  ours, theirs = (_flat(_complete(c)) for c in (stored.to_json(config), _read(path)))
  notes = _compare_data(ours, theirs, data or {}, fingerprints(workdir), same_names)
  # A field that a newer version added is not in an older run's file.
  differ = [k for k in sorted({*ours, *theirs}) if k in theirs and ours.get(k) != theirs[k] and not k.startswith(_FREE)]
  reported = [k for k in differ if k in _REPORTED and not _switched(k, ours, theirs)]
  refused = [k for k in differ if k not in reported]
  if refused and not any(p.name.isdigit() for p in _listed(epath.Path(workdir) / "checkpoints")):
    return [f"{workdir} was begun with another config, but holds no checkpoint of it: it is used for this run"]
  if refused:
    shown = ", ".join(f"{k} ({theirs.get(k)!r} there, {ours.get(k)!r} here)" for k in refused[:4])
    more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
    text = f"{workdir} belongs to a run with another config: {shown}{more}. Use another --workdir, or that config"
    if not any(k.startswith(_SHAPING) for k in refused):
      text += f"; to go on from its weights, add --config.train.start_from={shlex.quote(str(workdir))} to another --workdir"
    raise ValueError(text)
  return notes + [f"config.{k} is now {ours.get(k)!r}, it was {theirs[k]!r}" for k in reported]


def _listed(folder) -> list:
  return list(folder.iterdir()) if folder.exists() else []


def claim(workdir, config: ml_collections.ConfigDict, data: Mapping[str, str] | None = None) -> None:
  """Writes config.json and data.json, after `check`. One process of a job calls it."""
  if data is not None:
    writing.write_json(epath.Path(workdir) / "data.json", dict(data))
  writing.write_text(epath.Path(workdir) / "config.json", json.dumps(stored.to_json(config), indent=1) + "\n")


def fingerprints(workdir) -> dict[str, str]:
  """The fingerprints that `claim` wrote; {} where there are none."""
  path = epath.Path(workdir) / "data.json"
  return _read(path) if path.exists() else {}


def _compare_data(ours: dict, theirs: dict, data: Mapping, before: Mapping, same_names: bool) -> list[str]:
  """Makes fields of `ours` that name the same files equal to `theirs`; sentences about files that changed under their name."""
  notes = []
  for field in _DATA:
    if field not in ours or field not in theirs:
      continue
    known = data.get(field) and before.get(field)
    same = data[field] == before[field] if known else field == "data.source" and same_names
    if ours[field] != theirs[field] and same:
      ours[field] = theirs[field]
    elif ours[field] == theirs[field] and known and not same:
      notes.append(f"The files of config.{field}={ours[field]} have changed since the run was started: it uses the new ones")
  return notes


def _switched(field: str, ours: dict, theirs: dict) -> bool:
  """Whether a change adds a part to the optimizer's state or removes one, so that the stored state no longer fits."""
  return field.endswith("clip_norm") and (ours[field] > 0) != (theirs[field] > 0)


def _complete(config: dict) -> dict:
  """A stored config with all settings of its networks, of which earlier versions stored some."""
  config = stored.upgrade(config)
  for section in ("optimizer", "discriminator_optimizer"):
    if section in config:
      config[section] = {"name": "adamw", **config[section]}  # earlier versions had no other
  for section in ("model", "discriminator"):
    try:
      given = config.get(section, {})
      config[section] = {**json.loads(json.dumps(models.defaults(given.get("name")))), **given}
    except (ValueError, AttributeError):  # no network, or one that is refused elsewhere
      continue
    config[section].pop("out_channels", None)  # follows from data.target
  return config


def _read(path) -> dict:
  try:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
      raise ValueError
    return found
  except ValueError as error:
    raise ValueError(f"{path} is not readable JSON: restore it, or use another --workdir") from error


def _flat(tree: dict, prefix: str = "") -> dict:
  flat = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    flat.update(_flat(value, name + ".") if isinstance(value, dict) and value else {name: value})
  return flat
