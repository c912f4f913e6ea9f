"""What the page can do, with the models loaded once: generate pairs, paint a tree, find the vessels of a photograph."""

import collections
import dataclasses
import io
import json
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Mapping

import jax
import numpy as np

from retree_jax import checkpoint
from retree_jax.data import attributes, field_of_view, formats, montage, transforms, writing
from retree_jax.inference import dataset_writer, pairs
from retree_jax.inference.segmenter import Segmenter
from retree_jax.page import measures, uploads
from retree_jax.page.jobs import Outcome
from retree_jax.page.nearest import TrainingEyes

MAX_PAIRS = 16  # of one job
_MAX_STEPS = 250
_MAX_GENERATORS = 4  # compiled ones, by their settings
_SHOWN = 1024  # longer side of a photograph on the page, in pixels
_COLOUR = (90, 255, 120)  # of trees over photographs, as in the report
_DATE = (1980, 1, 1, 0, 0, 0)  # of files in archives, whose bytes must not depend on the clock

Say = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Control:
  """A number that the user may set.

  Attributes:
    name, label, hint: how it is called in requests and on the page, and what it does.
    low, high, step: allowed values; whole numbers where `step` is one.
    default: its value if nothing is set; None leaves it to the models.
    own: what the models use then, as a text.
    words: {word: value}, what can be chosen in place of a number.
    only: the one action that it is for; "" for all.
  """

  name: str
  label: str
  hint: str
  low: float
  high: float
  step: float
  default: float | None = None
  own: str = ""
  words: Mapping[str, float] = dataclasses.field(default_factory=dict)
  only: str = ""

  def read(self, text: str | None) -> float | None:
    """The value that a request gives, or the default.

    Raises:
      ValueError: it is no such number.
    """
    if text is None or text == "":
      return self.default
    if text in self.words:
      return self.words[text]
    kind = int if isinstance(self.step, int) else float
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not self.low <= value <= self.high:
      whole = "a whole number" if kind is int else "a number"
      raise ValueError(f"{self.label} is {text[:20]!r}: give {whole} from {self.low} to {self.high}")
    return value


class _Given:
  """One tree, painted several times: what `dataset_writer.make_chunk` takes for a folder of trees."""

  def __init__(self, tree: np.ndarray, num: int):
    self._tree, self.names = tree, [f"painted_{k}" for k in range(num)]
    self.fingerprint = "on the page"

  def __getitem__(self, rows: range):
    return [self._tree] * len(rows), [None] * len(rows)


class _Spoken:
  """A generator that says what it does."""

  def __init__(self, generator: pairs.Generator, say: Callable[[str, float], None]):
    self._generator, self._say = generator, say

  def __getattr__(self, name: str):
    return getattr(self._generator, name)

  def trees(self, *arguments):
    several = self._generator.candidates
    trees = f"{several} trees to choose from" if several > 1 else "the tree"
    self._say(f"{self._first('tree')}drawing {trees}", 0.0)
    return self._generator.trees(*arguments)

  def photographs(self, *arguments):
    self._say(f"{self._first('fundus')}painting the photograph", 0.4)
    return self._generator.photographs(*arguments)

  def _first(self, stage: str) -> str:
    """What the first run of a stage does besides, and takes most of its time."""
    return "" if stage in self._generator.seconds else "compiling the model and "


class Studio:
  """The models and everything that the page does with them. Not for several threads at once: see `jobs.Queue`.

  Args:
    paths: stages, as `dataset_writer.write` takes them.
    segmenter: workdir or name of a segmentation stage; None for a page that reads no photographs.
    train: folder or data source on which the models were trained, to show nearest training eyes; None for none.

  Raises:
    ValueError: models that do not fit each other, or a bad folder.
  """

  def __init__(self, paths: Mapping, segmenter: str | None = None, train: str | None = None):
    self._models = pairs.load_models(**paths)
    first = pairs.Generator(self._models)
    self._generators = collections.OrderedDict({(None, None, False, False): first})
    loaded = None if segmenter is None else checkpoint.load(segmenter, stage="segmentation")
    self._segmenter = None if loaded is None else Segmenter(loaded.config, loaded.network)
    self._segmenter_params = None if loaded is None else jax.device_put(loaded.params)
    self._eyes = None if train is None else TrainingEyes(train)
    self.controls = controls(first)

  def actions(self) -> list[str]:
    """What the loaded models can do, of "generate", "paint" and "segment"."""
    can = {
      "generate": self._models.tree is not None,
      "paint": self._models.fundus is not None,
      "segment": self._segmenter is not None,
    }
    return [name for name, able in can.items() if able]

  def facts(self) -> dict:
    """What the page says about the models: {"stages": {name: checkpoint and training step}, "train": whether nearest eyes are
    shown}."""
    models = self._models
    loaded = {"tree": models.tree} | {f"refinement {i}": stage for i, stage in enumerate(models.refine, 1)}
    loaded |= {"fundus": models.fundus} | {f"detail {i}": stage for i, stage in enumerate(models.detail, 1)}
    loaded |= {"superres": models.superres}
    stages = {name: f"{stage.identity()}, step {stage.step}" for name, stage in loaded.items() if stage is not None}
    return {"stages": stages, "train": self._eyes is not None}

  def settings(self, request: Mapping[str, str]) -> dict:
    """The settings of a request, {name of a control: value}.

    Raises:
      ValueError: a setting that does not exist, or a value out of its bounds.
    """
    known = {control.name: control for control in self.controls}
    if unknown := sorted(set(request) - set(known)):
      raise ValueError(f"there is no setting {unknown[0][:40]!r}: use {', '.join(known)}")
    return {name: control.read(request.get(name)) for name, control in known.items()}

  def generate(self, settings: Mapping, say: Say) -> Outcome:
    """Draws trees and paints them: the pairs that `retree-jax generate` writes with these settings, to the byte."""
    return self._make(settings, None, say)

  def paint(self, data: bytes, settings: Mapping, say: Say) -> Outcome:
    """Paints an uploaded tree, as often as `settings["num"]` says.

    Raises:
      ValueError: the upload is no tree.
    """
    return self._make(settings, _Given(uploads.tree(data), settings["num"]), say)

  def segment(self, data: bytes, say: Say) -> Outcome:
    """Finds the vessels of an uploaded photograph and measures them.

    Raises:
      ValueError: the upload is no photograph.
    """
    say("reading the photograph", 0.0)
    image = uploads.photograph(data)
    fov = field_of_view.find_fov(image)
    say("finding the vessels", 0.1)
    (probability,) = self._segmenter(self._segmenter_params, [image], [fov])
    mask = ((probability > self._segmenter.threshold) * np.uint8(255))[..., None]
    say("measuring", 0.7)
    shown = {"photograph": image, "tree": mask, "overlay": montage.overlay(image, mask, _COLOUR, 0.85)}
    files = {f"shown/{name}.png": writing.png_bytes(_shrunk(pixels)) for name, pixels in shown.items()}
    files |= {"vessels.png": writing.png_bytes(mask), "field_of_view.png": writing.png_bytes(fov)}
    eye = {
      "name": "photograph",
      "pictures": {name: f"shown/{name}.png" for name in shown},
      "downloads": {"vessels (PNG)": "vessels.png", "field of view (PNG)": "field_of_view.png"},
      "measures": measures.table(image, mask, fov),
    }
    return Outcome(writing.json_values({"eyes": [eye], "downloads": {}}), files)

  def _generator(self, settings: Mapping, ask: Mapping | None = None) -> pairs.Generator:
    """The compiled generator for these settings and what is asked for; the last few are kept."""
    ask = dict(ask or {})
    # What a generator does by default for what it is asked: guidance for measures, several candidates for a tortuosity.
    measures = attributes.measures_in(ask)
    key = settings.get("steps"), settings.get("guidance"), bool(measures - {"tortuosity"}), "tortuosity" in measures
    if key not in self._generators:
      self._generators[key] = pairs.Generator(self._models, num_steps=key[0], guidance=key[1], ask=ask)
      if len(self._generators) > _MAX_GENERATORS:
        self._generators.popitem(last=False)
    self._generators.move_to_end(key)
    return self._generators[key]

  def _make(self, settings: Mapping, given, say: Say) -> Outcome:
    num, seed = settings["num"], settings["seed"]
    asked = {name: settings.get(name) for name in attributes.ATTRIBUTES}
    ask = {} if given else {name: value for name, value in asked.items() if value is not None}
    generator = self._generator(settings, ask)
    generator.ask = ask
    facts = dataset_writer.facts_of(dataset_writer.identity_of(generator, seed, "png", given))
    unit = max(sampler.block for sampler in generator.samplers.values())  # what the devices do at once
    rows, eyes, files = [], [], {}
    for start in range(0, num, unit):
      stop = min(start + unit, num)
      which = f" {start + 1}" if stop == start + 1 else f"s {start + 1} to {stop}"

      def tell(text, share, start=start, stop=stop, which=which):
        say(f"{text} (pair{which} of {num})" if num > 1 else text, (start + share * (stop - start)) / num)

      new, fields = dataset_writer.make_chunk(_Spoken(generator, tell), facts, given, seed, range(start, stop))
      tell("measuring", 0.9)
      for i, row in enumerate(new):
        eye, made = self._eye(row, {folder: pixels[i] for folder, pixels in fields.items()})
        rows, eyes, files = [*rows, row], [*eyes, eye], files | made
    files["manifest.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    title = f"retree_seed{seed}_{num}"
    files[f"{title}.zip"] = archive({name: data for name, data in files.items() if not name.startswith("shown/")})
    downloads = {"all as ZIP": f"{title}.zip", "manifest": "manifest.jsonl"}
    return Outcome(writing.json_values({"eyes": eyes, "downloads": downloads}), files)

  def _eye(self, row: dict, fields: dict[str, np.ndarray]) -> tuple[dict, dict[str, bytes]]:
    """What the page shows of one pair, and its files."""
    name = row["name"]
    with tempfile.TemporaryDirectory() as folder:
      formats.FORMS["png"].write(pathlib.Path(folder), row, fields)
      files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*/*.png"))}
    mask, image = fields["masks"], fields.get("images")
    eye = {
      "name": name,
      "record": {key: row[key] for key in ("index", "seed", "attempts", "accepted", "filter_score") if key in row},
      "pictures": {"tree": f"masks/{name}.png"},
    }
    if image is not None:
      files[f"shown/{name}.png"] = writing.png_bytes(montage.overlay(image, mask, _COLOUR, 0.85))
      eye["pictures"] |= {"photograph": f"images/{name}.png", "overlay": f"shown/{name}.png"}
      if self._eyes is not None:
        eye["nearest"], files[f"shown/{name}_nearest.png"] = self._eyes.nearest(image, fields["fov"])
        eye["nearest"]["picture"] = f"shown/{name}_nearest.png"
    titles = {"images": "photograph (PNG)", "masks": "tree (PNG)", "fov": "field of view (PNG)", "coverage": "coverage (PNG)"}
    eye["downloads"] = {titles[folder]: f"{folder}/{name}.png" for folder in titles if f"{folder}/{name}.png" in files}
    eye["measures"] = measures.table(montage.to_rgb(mask) if image is None else image, mask, fields["fov"])
    return eye, files


def controls(generator: pairs.Generator) -> list[Control]:
  """The settings that the loaded models take, in the order of the page."""
  samplers = generator.samplers
  found = [
    Control("seed", "seed", "the same seed gives the same pairs", 0, 2**32 - 1, 1, 0),
    Control("num", "pairs", "how many to make", 1, MAX_PAIRS, 1, 1),
  ]
  steps = {name: str(s.config.sampler.num_steps) for name, s in samplers.items() if s.config.sampler.spacing != "full"}
  if steps:
    own = ", ".join(dict.fromkeys(steps.values()))
    found.append(Control("steps", "steps", "of sampling; more take longer", 1, _MAX_STEPS, 1, own=own))
  if "fundus" in samplers and samplers["fundus"].config.diffusion.condition_dropout:
    own = f"{samplers['fundus'].config.sampler.guidance:g}"
    hint = "above 1, photographs follow their tree more closely"
    found.append(Control("guidance", "guidance", hint, 1.0, 10.0, 0.1, own=own))
  for name in generator.attributes:
    (centre, scale), hint = attributes.usual(name), attributes.ATTRIBUTES[name][2]
    words = attributes.WORDS.get(name, {})
    low, high = (
      (min(words.values()), max(words.values())) if words else (round(centre - 2 * scale, 4), round(centre + 2 * scale, 4))
    )
    found.append(Control(name, name.replace("_", " "), hint, low, high, 0.001, own="open", words=words, only="generate"))
  return found


def archive(files: Mapping[str, bytes]) -> bytes:
  """A ZIP file; the same files always give the same bytes."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as out:
    for name, data in files.items():
      out.writestr(zipfile.ZipInfo(name, _DATE), data)
  return buffer.getvalue()


def _shrunk(pixels: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C] at the size at which the page shows it, at most."""
  shrink = _SHOWN / max(pixels.shape[:2])
  if shrink >= 1:
    return pixels
  return transforms.area_resize(pixels, tuple(max(1, round(side * shrink)) for side in pixels.shape[:2]))
