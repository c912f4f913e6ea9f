"""Train and test splits of a set of eyes: by `splits.json`, or by a hash of the patients' names."""

import hashlib
import json
import pathlib
import re

from retree_jax.data import folders, notices

HOLD_OUT = 0.2
# Eyes of one person must stay on one side of a split: 10_left and 10_right, Image_01L and Image_01R are one patient.
_SIDE = re.compile(r"(?<=[\d_\-.])[_\-.]?(left|right|od|os|l|r)$", re.IGNORECASE)
# And where the side stands elsewhere: "OD_12", "12_OS_2", "12 right eye", "12 (R)".
_WORD = re.compile(r"(?:^|(?<=[\W_]))(?:left|right|od|os)(?:[\W_]*eye)?(?:[\W_]+|$)|[\s(]+[lr]\)?$", re.IGNORECASE)


def hold_out(names, split: str = "test") -> tuple[list[str], list[str]]:
  """Splits names into (train, test), about one in five to test, by a hash of the part of the name that names the patient.

  Each name is hashed on its own, so that adding eyes never moves another eye between train and test (except in very small sets,
  where each side gets at least one patient); the two eyes of a patient stay together.

  Args:
    names: of eyes.
    split: what the held-out part is called in messages, "test" or "validation".

  Raises:
    ValueError: fewer than two patients, so that one of the sides would be empty.
  """
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(_patient(name), []).append(name)
  if len(groups) < 2:
    way_out = {"test": "write splits.json", "validation": "set config.data.heldout=test to train on all but the test split"}
    raise ValueError(
      f"Cannot hold out a {split} split from {folders.some(names) or 'nothing'}: add eyes of at least two "
      f"patients, or {way_out[split]}."
    )
  digests = {group: hashlib.sha256(group.encode()).digest() for group in groups}
  order = sorted(groups, key=digests.get)
  # Where the test split was held out by the first byte, nobody is left that this byte would choose for validation.
  for byte in (0, 1) if split == "validation" else (0,):
    if chosen := {group for group in order if digests[group][byte] < 256 * HOLD_OUT}:
      break
  chosen = chosen or {order[0]}
  if len(chosen) == len(groups):
    chosen.discard(order[-1])
  test = sorted(name for group in chosen for name in groups[group])
  return sorted(set(names) - set(test)), test


def _patient(name: str) -> str:
  """The part of an eye's name that names the patient."""
  key = folders.pairing_key(name)
  patient = _SIDE.sub("", key)
  return patient if patient != key else _WORD.sub("", key) or key


def read_splits(path: pathlib.Path, names) -> tuple[list[str], list[str]]:
  """(train, test) from `splits.json`: {"train": [stems], "test": [stems]}; other keys are ignored.

  Eyes that the file does not name are in neither split; a log line names them.

  Raises:
    ValueError: the file cannot be read or has other contents, a stem without a file, or one in both lists.
  """
  text = folders.read_text(path)
  try:
    content = json.loads(text)
    lists = [[folders.composed(str(stem)) for stem in content[key]] for key in ("train", "test")]
  except (json.JSONDecodeError, KeyError, TypeError):
    raise ValueError(
      f'{path} is not a split: write {{"train": [stems], "test": [stems]}} or remove it for a hold-out by hash.'
    ) from None
  exact, loose = set(names), {folders.pairing_key(name): name for name in names}

  def without_ending(stem):  # "eye_0.png" stands for "eye_0"
    return stem if stem in exact or not stem.lower().endswith(folders.EXTENSIONS) else stem.rpartition(".")[0]

  resolved = []
  for stems in lists:
    stems = list(dict.fromkeys(without_ending(stem) for stem in stems))  # what is listed twice counts once
    missing = [stem for stem in stems if stem not in exact and folders.pairing_key(stem) not in loose]
    if missing:
      raise ValueError(f"{path} names {folders.some(missing)}, for which there is no file: add the files or correct the list.")
    resolved.append([stem if stem in exact else loose[folders.pairing_key(stem)] for stem in stems])
  both = set(resolved[0]) & set(resolved[1])
  if both:
    raise ValueError(f"{path} puts {folders.some(sorted(both))} into both train and test: a test eye must never be trained on.")
  named = {folders.pairing_key(name) for name in resolved[0] + resolved[1]}
  # Lists of other names ("validation") are the user's own, and what is in them is left out on purpose.
  named |= {
    folders.pairing_key(without_ending(str(stem))) for stems in content.values() if isinstance(stems, list) for stem in stems
  }
  if unnamed := [name for name in names if folders.pairing_key(name) not in named]:
    sentence = (
      f"{path} does not name {folders.some(unnamed)}, so they are neither trained nor tested on: add them to one of its lists."
    )
    notices.once(str(path), "unnamed", sentence)
  return resolved[0], resolved[1]
