"""TFDS builders of the public sets. Their licences ask every user to download the sets personally, so the builders read such a
download (TFDS' "manual downloads") and fetch nothing:

    python -m retree_jax.data.builders chase_db1 ~/Downloads/CHASEDB1.zip        # then: --config.data.source=tfds:chase_db1

or, from Python, `prepare("chase_db1", path)`; or TFDS' own way, the archive in DATA_DIR/downloads/manual/ and
`tfds.builder("chase_db1").download_and_prepare()` after importing this module. Files are ArrayRecord, and neither building nor
reading needs TensorFlow.

Each example has "name", "label" ("expert", or "none" without a mask), "image" (the JPEG or PNG file itself, or a PNG), "fov"
(found in the photograph where the set has none), and in the labelled sets "tree", which is empty where the label is "none".
"""

import gzip
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable

import tensorflow_datasets as tfds

from retree_jax.data import field_of_view, folders, image_io, masks, writing
from retree_jax.data.builders import layouts

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def _is_archive(path: pathlib.Path) -> bool:
  return path.name.lower().endswith(ARCHIVES)


class _Fundus(tfds.core.GeneratorBasedBuilder):
  """Base class of all sets; a subclass gives the layout of its files."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  # Nothing is fetched, so there are no checksums; TFDS would look for them with a package that it does not require.
  url_infos = {}
  LABELLED = True
  TITLE = HOMEPAGE = CITATION = LICENCE = ""
  layout: Callable[..., layouts.Splits]
  downloaded: pathlib.Path | None = None  # set by `prepare`; TFDS' manual folder otherwise

  def __init__(self, *, file_format="array_record", **kwargs):
    super().__init__(file_format=file_format, **kwargs)

  @property
  def MANUAL_DOWNLOAD_INSTRUCTIONS(self):
    return f"Download {self.TITLE} from {self.HOMEPAGE} and put the archive, or the unpacked folder, there."

  def _info(self):
    def picture(channels):
      return tfds.features.Image(shape=(None, None, channels))

    tree = {"tree": picture(1)} if self.LABELLED else {}
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{self.TITLE} for retree_jax.",
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      license=self.LICENCE,
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(names={}, unlabelled=[]),
      features=tfds.features.FeaturesDict(
        {"name": tfds.features.Text(), "label": tfds.features.Text(), "image": picture(3), "fov": picture(1), **tree}
      ),
    )

  def _eyes(self, files) -> layouts.Splits:
    observer = self.builder_config.name if self.builder_config else "first"
    return type(self).layout(files, observer)

  def _download_and_prepare(self, dl_manager, **kwargs):
    # Archives are unpacked beside TFDS' sets, where there is room; the unpacked files are removed when the set is built.
    pathlib.Path(dl_manager.download_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dl_manager.download_dir, prefix="unpacked_") as scratch:
      self._scratch = pathlib.Path(scratch)
      super()._download_and_prepare(dl_manager, **kwargs)

  def _split_generators(self, dl_manager):
    root = self.downloaded or pathlib.Path(dl_manager.manual_dir)
    if self.downloaded is None and (root / self.name).is_dir():
      root = root / self.name
    splits = self._eyes(_unpacked(root, self._scratch))
    self.info.metadata["names"] = {split: [eye.name for eye in eyes] for split, eyes in splits.items()}
    self.info.metadata["unlabelled"] = [eye.name for eyes in splits.values() for eye in eyes if not eye.tree]
    return {split: self._generate_examples(eyes) for split, eyes in splits.items()}

  def _generate_examples(self, eyes):
    for number, eye in enumerate(eyes):
      image, stored = _photograph(eye.image, self.name)
      example = {"name": eye.name, "label": "expert" if eye.tree else "none", "image": stored}
      fov = masks.read_fov(_bytes(eye.fov), str(eye.fov), self.name) if eye.fov else field_of_view.find_fov(image)
      example["fov"] = writing.png_bytes(fov)
      if self.LABELLED:
        tree = masks.read_tree(_bytes(eye.tree), str(eye.tree), source=self.name) if eye.tree else 0 * fov
        for kind, mask in (("vessel mask", tree), ("field of view", fov)):
          if mask.shape[:2] != image.shape[:2]:
            raise ValueError(
              f"The {kind} of {eye.name} has the size {mask.shape[:2]} but its photograph {image.shape[:2]}: "
              "download the set again."
            )
        if eye.tree:
          masks.check_fov(tree, fov, "expert", str(eye.tree), str(eye.fov or f"The visible disc found in {eye.image}"))
        example["tree"] = writing.png_bytes(tree)
      yield number, example


def _unpacked(root: pathlib.Path, scratch: pathlib.Path) -> list[pathlib.Path]:
  """All files of a folder or archive, including those of archives inside (DRIVE and STARE are archives of archives)."""
  pending, files = [root], []
  while pending:
    path = pending.pop()
    if path.is_dir():
      inside = [p for p in path.rglob("*") if p.is_file() and "__MACOSX" not in p.parts and not p.name.startswith(".")]
      pending += [p for p in inside if _is_archive(p)]
      files += [p for p in inside if not _is_archive(p)]
    else:
      pending.append(_unpack(path, scratch / f"{len(list(scratch.iterdir()))}_{path.name}"))
  return files


def _unpack(archive: pathlib.Path, into: pathlib.Path) -> pathlib.Path:
  """Unpacks the plain files of an archive; TFDS' own extraction needs TensorFlow.

  Raises:
    ValueError: it is damaged, or names files outside itself.
  """

  def write(name, file):
    path = into / name
    if into.resolve() not in path.resolve().parents:
      raise ValueError(f"{archive} wants to write to {name}, outside its folder: do not trust it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as out:
      shutil.copyfileobj(file, out)

  into.mkdir()
  try:
    if archive.suffix.lower() == ".zip":
      with zipfile.ZipFile(archive) as source:
        for entry in source.infolist():
          if not entry.is_dir():
            with source.open(entry) as file:
              write(entry.filename, file)
    else:
      with tarfile.open(archive) as source:
        for entry in source:
          if entry.isfile():
            write(entry.name, source.extractfile(entry))
  except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, RuntimeError) as error:
    raise ValueError(f"{archive} is damaged or locked ({error}): download it again.") from None
  return into


def _bytes(path: pathlib.Path) -> bytes:
  if path.suffix.lower() != ".gz":
    try:
      return path.read_bytes()
    except PermissionError:
      raise ValueError(f"{path} cannot be opened: you have no permission to read it; allow it (chmod u+r).") from None
  try:
    with gzip.open(path) as file:
      # At most a PPM file of the greatest picture that `image_io` accepts: a compressed file can claim any size.
      return file.read(4 * image_io.MAX_PIXELS)
  except (OSError, EOFError) as error:
    raise ValueError(f"Cannot read {path} ({error}): download it again.") from None


def _photograph(path: pathlib.Path, source: str):
  """(uint8 [H, W, 3], the bytes to store): the file's own where every reader shows them as they are, otherwise a PNG's."""
  data = _bytes(path)
  image = image_io.as_photograph(image_io.decode(data, str(path), source))
  return image, data if image_io.is_plain(data) else writing.png_bytes(image)


def _configs(**descriptions: str):
  return [tfds.core.BuilderConfig(name=name, description=text) for name, text in descriptions.items()]


OBSERVERS = {
  "first": "First observer's masks (the usual truth).",
  "second": "Second observer's masks, to measure inter-observer agreement.",
}


class ChaseDb1(_Fundus):
  """CHASE_DB1: 28 photographs, 14 children."""

  TITLE, LICENCE = "CHASE_DB1", "CC BY 4.0"
  HOMEPAGE = "https://researchdata.kingston.ac.uk/96/"
  CITATION = (
    "Fraz et al., An ensemble classification-based approach applied to retinal blood vessel segmentation, "
    "IEEE Trans. Biomed. Eng. 59(9), 2012"
  )
  BUILDER_CONFIGS = _configs(**OBSERVERS)
  layout = staticmethod(layouts.chase_db1)


class Hrf(_Fundus):
  """HRF: 45 photographs of 3504x2336."""

  TITLE, LICENCE = "HRF", "CC BY 4.0"
  HOMEPAGE = "https://www5.cs.fau.de/research/data/fundus-images/"
  CITATION = "Budai et al., Robust vessel segmentation in fundus images, Int. J. Biomed. Imaging 2013:154860"
  layout = staticmethod(layouts.hrf)


class Drive(_Fundus):
  """DRIVE: 40 photographs of 565x584."""

  TITLE, LICENCE = "DRIVE", "on registration; no open licence: do not pass the photographs on"
  HOMEPAGE = "https://drive.grand-challenge.org/"
  CITATION = "Staal et al., Ridge-based vessel segmentation in color images of the retina, IEEE Trans. Med. Imaging 23(4), 2004"
  layout = staticmethod(layouts.drive)


class Stare(_Fundus):
  """STARE: 20 photographs of 700x605."""

  TITLE, LICENCE = "STARE", "none stated: ask the authors before you pass the photographs on"
  HOMEPAGE = "https://cecas.clemson.edu/~ahoover/stare/"
  CITATION = (
    "Hoover et al., Locating blood vessels in retinal images by piecewise threshold probing of a matched filter "
    "response, IEEE Trans. Med. Imaging 19(3), 2000"
  )
  BUILDER_CONFIGS = _configs(**OBSERVERS)
  layout = staticmethod(layouts.stare)


class Eyepacs(_Fundus):
  """Any folder of photographs without masks, such as EyePACS."""

  LABELLED = False
  TITLE, LICENCE = "EyePACS (or any folder of photographs)", "the competition's rules: research, no redistribution"
  HOMEPAGE = "https://www.kaggle.com/c/diabetic-retinopathy-detection"
  layout = staticmethod(layouts.photographs)


class Eyeq(_Fundus):
  """EyeQ: EyePACS photographs chosen by quality."""

  LABELLED = False
  TITLE, LICENCE = "EyePACS with the lists of EyeQ", Eyepacs.LICENCE
  HOMEPAGE = "https://github.com/HzFu/EyeQ"
  CITATION = "Fu et al., Evaluation of retinal image quality assessment networks in different color-spaces, MICCAI 2019"
  BUILDER_CONFIGS = _configs(good="Quality 0.", usable="Quality 0 and 1.")

  def _eyes(self, files):
    return layouts.eyeq(files, worst=("good", "usable").index(self.builder_config.name))


BUILDERS = {builder.name: builder for builder in (ChaseDb1, Hrf, Drive, Stare, Eyepacs, Eyeq)}


def prepare(name: str, downloaded, data_dir=None) -> pathlib.Path:
  """Builds a set from what was downloaded, so that `tfds:NAME[:DATA_DIR]` reads it; a set that is there already stays.

  Args:
    name: "chase_db1", "hrf", "drive", "stare", "eyepacs" or "eyeq"; with "/second" (chase_db1, stare) the second observer's
      masks, with "/usable" (eyeq) less good photographs too.
    downloaded: the archive (.zip, .tar, .tar.gz), or a folder of files or archives.
    data_dir: where TFDS sets are kept; ~/tensorflow_datasets by default.

  Returns:
    The folder of the built set.

  Raises:
    ValueError: an unknown set, or files that are missing, damaged or not those of the set.
  """
  base, _, config = name.partition("/")
  builder_class = BUILDERS.get(base)
  configs = [c.name for c in builder_class.BUILDER_CONFIGS] if builder_class else []
  if builder_class is None or (config and config not in configs):
    known = ", ".join("/".join((n, c.name)) if c else n for n, b in BUILDERS.items() for c in (b.BUILDER_CONFIGS or [None]))
    raise ValueError(f"There is no builder for {name!r}: write one of {known}.")
  path = folders.expanded(downloaded)
  if not path.exists():
    raise ValueError(
      f"{path} does not exist: download {builder_class.TITLE} from {builder_class.HOMEPAGE} and give the file "
      "or folder that you got."
    )
  if path.is_file() and not _is_archive(path):
    raise ValueError(f"{path} is not an archive: give a folder, or a file that ends in {', '.join(ARCHIVES)}.")
  where = None if data_dir is None else str(folders.expanded(data_dir))
  builder = builder_class(config=config or None, data_dir=where)
  builder.downloaded = path
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)
