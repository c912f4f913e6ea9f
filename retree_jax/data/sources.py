"""Data sources: from a spec to a random-access sequence of examples.

    phantom, phantom:1000       procedural eyes, 200 unless a number is given
    folder:PATH                 photographs and masks on disk (`folders`), also in nnU-Net's raw layout (`nnunet`)
    tfds:NAME, tfds:NAME:DIR    a TFDS data set (`tfds_source`, `builders`)
    folder:PATH[:50]            the first 50 training eyes of a folder, or of a TFDS data set; its test split stays whole
    folder:A*3+folder:B         several, joined by "+"; with "*3" each eye of A is drawn three times as often as each eye of B

An *example* is a dict: "name" str; "image" uint8 [H, W, 3]; "tree" uint8 0/255 [H, W, 1]; "fov" uint8 0/255 [H, W, 1];
"label", the origin of the tree: "expert", "predicted", "phantom" or "generated". A missing "image" or "tree" is absent.
"""

import functools
import os
import re
import zlib

import numpy as np

from retree_jax.data import folders, nnunet, splits

SPLITS = ("train", "test", "all", "fit", "validation")
FIELDS = ("image", "tree", "fov", "vessels", "attributes", "image?", "tree?")
_JOIN = re.compile(r"\+(?=(?:phantom|folder:|tfds:))")
_FIRST = re.compile(r"\[:([0-9]+)\]$")
_WEIGHT = re.compile(r"\*([0-9]*\.?[0-9]+(?:e[+-]?\d+)?)$")


class PhantomSource:
  """Procedural eyes (`retree_jax.data.phantom`), drawn on demand and cached.

  Eye i of the train split has the phantom seed 2·(seed·10⁶ + i), of the test split that number plus one; the numbers of the
  validation split follow those of the train split, so that the splits never share an eye.

  Attributes:
    names: phantom_SEED.  title: "phantom".
  """

  title = "phantom"
  # Bounds the memory of large sets; the default set fits.
  max_cached = 400

  def __init__(self, number: int = 200, split: str = "train", seed: int = 0, size=None):
    held_out = max(1, round(number * splits.HOLD_OUT))
    train = [2 * (seed * 1_000_000 + i) for i in range(number)]
    test = [2 * (seed * 1_000_000 + i) + 1 for i in range(held_out)]
    # New eyes to validate on: none has to be taken from the train split.
    validation = [2 * (seed * 1_000_000 + number + i) for i in range(held_out)]
    self._seeds = {"train": train, "fit": train, "validation": validation, "test": test, "all": train + test}[split]
    self.size = tuple(size or (512, 512))
    self.names = [f"phantom_{eye_seed}" for eye_seed in self._seeds]
    self._draw = self._cached()

  def _cached(self):
    return functools.lru_cache(maxsize=self.max_cached)(self._render)

  def __getstate__(self) -> dict:
    """What another process needs: it draws and keeps eyes of its own."""
    return {name: value for name, value in self.__dict__.items() if name != "_draw"}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._draw = self._cached()

  def _render(self, eye_seed: int) -> dict:
    from retree_jax.data import phantom  # only phantoms need it

    return phantom.eye(eye_seed, self.size)

  def at_size(self, size) -> "PhantomSource":
    """The same eyes drawn at another size (height, width)."""
    copy = object.__new__(PhantomSource)
    copy._seeds, copy.names, copy.size = self._seeds, self.names, tuple(size)
    copy._draw = copy._cached()
    return copy

  def __len__(self) -> int:
    return len(self._seeds)

  def __getitem__(self, index: int) -> dict:
    example = dict(self._draw(self._seeds[index]))
    example.update(name=self.names[index], label="phantom")
    return example


class JoinedSource:
  """Several sources in sequence; names get their source's title as a prefix, so that they stay unique.

  Attributes:
    parts: the sources.
    weights: one positive number per source: how often one of its eyes is drawn, relative to the eyes of the others.
  """

  def __init__(self, parts, weights):
    self.parts, self.weights = list(parts), [float(weight) for weight in weights]
    self.title = "+".join(part.title for part in self.parts)
    self._starts = np.cumsum([0] + [len(part) for part in self.parts])
    titles = [part.title for part in self.parts]
    prefixes = [title if titles.count(title) == 1 else f"{title}{number}" for number, title in enumerate(titles, 1)]
    self._prefixes = prefixes
    self.names = [f"{prefix}-{name}" for prefix, part in zip(prefixes, self.parts, strict=True) for name in part.names]

  def at_size(self, size) -> "JoinedSource":
    return JoinedSource([at_size(part, size) for part in self.parts], self.weights)

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    index %= len(self)
    part = int(np.searchsorted(self._starts, index, side="right")) - 1
    return {**self.parts[part][index - int(self._starts[part])], "name": self.names[index]}


class ChosenSource:
  """A subset of another source, by name.

  Attributes:
    names: of the chosen eyes, in the order of `source`.
    title: the source's.
    path, files: the source's, where it has some.
  """

  def __init__(self, source, names):
    wanted = set(names)
    self._source, self.title = source, source.title
    for own in ("path", "files"):  # by which a source of files is recognised
      if hasattr(source, own):
        setattr(self, own, getattr(source, own))
    self._rows = [row for row, name in enumerate(source.names) if name in wanted]
    self.names = [source.names[row] for row in self._rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict:
    return self._source[self._rows[index]]

  def is_labelled_generated(self) -> bool:
    return self._source.is_labelled_generated()

  def has_tree(self, name) -> bool:
    """Whether an example has a vessel mask."""
    return not hasattr(self._source, "has_tree") or self._source.has_tree(name)


def _part(names: list[str], split: str) -> list[str]:
  """The names of a train split that "fit" or "validation" keeps; any other split keeps all."""
  if split not in ("fit", "validation") or not names:
    return names
  return splits.hold_out(names, "validation")[0 if split == "fit" else 1]


def without_number(spec: str) -> str:
  """One source's spec without the "[:N]" at its end, unless that belongs to the name of a folder."""
  path = spec.partition(":")[2]
  return spec if os.path.isdir(os.path.expanduser(path or spec)) else _FIRST.sub("", spec)


def names_first_eyes(spec: str) -> bool:
  """Whether a part of a spec is the first eyes of a source, "[:N]"."""
  if os.path.isdir(os.path.expanduser(spec)):
    return False
  return any(without_number(part) != part for part, _ in weighted_parts(spec))


def number_of_trees(source) -> int:
  """How many eyes of a source have a vessel mask; all of kinds of sources that cannot tell."""
  if hasattr(source, "parts"):
    return sum(map(number_of_trees, source.parts))
  return sum(map(source.has_tree, source.names)) if hasattr(source, "has_tree") else len(source)


def at_size(source, size):
  """The source drawn at `size` if it has no resolution of its own (phantoms); any other source unchanged."""
  return source.at_size(size) if hasattr(source, "at_size") else source


def _open_one(spec: str, split: str, fields, seed: int, size):
  kind, _, rest = spec.partition(":")
  if kind in ("folder", "tfds") and (first := _FIRST.search(spec)) and without_number(spec) != spec:
    part = split in ("fit", "validation")
    whole = _open_one(spec[: first.start()], "train" if part else split, fields, seed, size)
    if split == "test":
      return whole
    if not 0 < int(first[1]) <= len(whole):
      raise ValueError(f"{spec!r} asks for {first[1]} of {len(whole)} eyes: give a number from 1 to {len(whole)}.")
    return ChosenSource(whole, _part(whole.names[: int(first[1])], split))
  if kind == "phantom":
    if rest and not (rest.isdigit() and int(rest) > 0):
      raise ValueError(f"{spec!r}: write phantom or phantom:NUM with a whole number of eyes above 0, e.g. phantom:200.")
    return PhantomSource(int(rest or 200), split, seed, size)
  if kind == "folder" and rest:
    source = (nnunet.NnunetSource if nnunet.is_raw(rest) else folders.FolderSource)(rest, fields)
    if split != "all":
      listed = source.path / "splits.json"
      if listed.is_file():
        train, test = splits.read_splits(listed, source.names)
      else:
        train, test = source.split or splits.hold_out(source.names)
      chosen = test if split == "test" else _part(train, split)
      if not chosen:
        raise ValueError(
          f"{listed} has an empty {'test' if split == 'test' else 'train'} list: name at least one eye there, or use "
          "split 'all'."
        )
      source.keep(chosen)
    return source
  if kind == "tfds" and rest:
    from retree_jax.data import tfds_source  # importing tensorflow_datasets takes seconds

    whole = tfds_source.TfdsSource(rest, split="train" if split in ("fit", "validation") else split, fields=fields)
    return whole if whole.names == (names := _part(whole.names, split)) else ChosenSource(whole, names)
  raise ValueError(f"Unknown data source {spec!r}: write phantom[:NUM], folder:PATH or tfds:NAME[:DIR], several joined by '+'.")


def open_source(spec: str, *, split: str = "train", fields=("image", "tree"), seed: int = 0, size=None):
  """Opens a data source.

  Args:
    spec: see the top of this file, and `weighted_parts` for folders whose names hold "+" or "*".
    split: "train", "test" or "all". A folder's `splits.json` is honoured; without it about one patient in five is held out by a
      hash of the name. "fit" and "validation" divide the train split in the same way, so that checkpoints and thresholds can be
      chosen without the test split.
    fields: what each example must have, of "image", "tree", "fov"; "vessels", which the pipeline makes of the tree, needs
      the tree. "tree?" and "image?" are optional, so that unlabelled photographs can be mixed with labelled ones. Every example
      has a "fov".
    seed: selects the phantom eyes; other sources do not depend on it.
    size: (height, width) at which phantoms are drawn, default 512x512; other sources keep their own resolution.

  Returns:
    A source: `len(source)`, `source[i]` -> example, `source.names`.

  Raises:
    ValueError: an unknown spec, split or field, or unusable files.
  """
  if split not in SPLITS:
    raise ValueError(f"Unknown split {split!r}: write one of {', '.join(SPLITS)}.")
  fields = tuple(fields)
  unknown = [field for field in fields if field not in FIELDS]
  if unknown or not fields:
    raise ValueError(f"Unknown fields {unknown}: write some of {', '.join(FIELDS)}.")
  fields = tuple(dict.fromkeys("tree" if field == "vessels" else field for field in fields))
  if not isinstance(spec, str) or not spec.strip():
    raise ValueError("The data source is empty: write phantom[:NUM], folder:PATH or tfds:NAME[:DIR], several joined by '+'.")
  pieces, weights = zip(*weighted_parts(spec), strict=True)
  parts = [_open_one(piece, split, fields, seed, size) for piece in pieces]
  return parts[0] if len(parts) == 1 else JoinedSource(parts, weights)


def weighted_parts(spec: str) -> list[tuple[str, float]]:
  """(spec, weight) of the sources that a spec joins; a weight that is not written is 1.

  A folder's name may hold "+" and "*": of several ways to read a spec, each source in turn takes the longest text that names an
  existing folder, as it is written or without a weight. So "folder:A*3" is the folder "A*3" where there is one, and
  "folder:A*3*2" gives that folder the weight 2.

  Raises:
    ValueError: a weight of 0.
  """
  spec = spec.strip()
  ends = [match.start() for match in _JOIN.finditer(spec)] + [len(spec)]
  parts, start = [], 0
  while start < len(spec):
    possible = [end for end in ends if end > start]
    end = next((end for end in reversed(possible) if _names_folder(spec[start:end])), possible[0])
    piece, weight = spec[start:end], None
    if not _is_folder(piece):
      weight = _WEIGHT.search(piece)
    if weight and float(weight[1]) <= 0:
      raise ValueError(f"The weight in {piece!r} must be above 0: leave the source out instead.")
    parts.append((piece[: weight.start()], float(weight[1])) if weight else (piece, 1.0))
    start = end + 1
  return parts


def _names_folder(piece: str) -> bool:
  return _is_folder(piece) or _is_folder(_WEIGHT.sub("", piece))


def _is_folder(piece: str) -> bool:
  """Whether the path in a spec folder:PATH or tfds:NAME:PATH is an existing folder."""
  kind, _, path = piece.partition(":")
  path = path.partition(":")[2] if kind == "tfds" else path
  return kind in ("folder", "tfds") and any(p and os.path.isdir(os.path.expanduser(p)) for p in (path, _FIRST.sub("", path)))


def fingerprint(source) -> int:
  """A 32-bit checksum of the names in a source, with which a resumed run notices other data."""
  return zlib.crc32("\n".join(source.names).encode())
