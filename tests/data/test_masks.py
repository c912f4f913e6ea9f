"""What a mask file draws, in every form that people save it in; and which files are refused, with a way out that works."""

import io
import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image, ImageDraw

from retree_jax.data import binarise, folders, masks

HEIGHT, WIDTH = 120, 140
Y, X = np.mgrid[:HEIGHT, :WIDTH]
DISC = np.hypot(Y - 60, X - 70) < 56
PHOTO = (DISC[..., None] * np.array([180, 80, 30])).astype(np.uint8)


def vessels(scale=1):
  """A drawn tree of vessels 7 and 4 pixels wide."""
  picture = Image.new("L", (WIDTH * scale, HEIGHT * scale))
  draw = ImageDraw.Draw(picture)
  for points, width in (((30, 60, 70, 50, 110, 62), 7), ((70, 50, 80, 20), 4), ((50, 56, 45, 100), 4)):
    draw.line([scale * p for p in points], 255, width * scale)
  return picture


TREE = np.asarray(vessels()) > 0
TREE8 = np.uint8(255) * TREE


def encoded(array, form="PNG", **options):
  data = io.BytesIO()
  (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(data, form, **options)
  return data.getvalue()


def rgba(colour, alpha):
  return Image.fromarray(np.dstack([np.broadcast_to(np.uint8(colour), (*alpha.shape, 3)), alpha]))


def read(data):
  return masks.read_tree(data, "it")[..., 0] > 0


@pytest.fixture
def said(monkeypatch):
  """The sentences that are logged, each once per source."""
  found = []
  monkeypatch.setattr(masks.notices, "_said", set())
  monkeypatch.setattr(masks.notices.logging, "warning", lambda form, *values: found.append(form % values))
  return found


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 128), (1, 2), (40, 200), (200, 250)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_two_values_are_a_mask_whatever_they_are(values, kind, said):
  mask = np.where(TREE, values[1], values[0]).astype(kind)
  np.testing.assert_array_equal(read(encoded(mask, "TIFF")), TREE)
  if kind == np.uint8:
    np.testing.assert_array_equal(read(encoded(np.dstack([mask] * 3))), TREE)
  assert not said


@pytest.mark.parametrize("colour", [0, 255, (0, 90, 0), (255, 0, 0)])
def test_strokes_on_a_transparent_ground(colour, said):
  np.testing.assert_array_equal(read(encoded(rgba(colour, TREE8))), TREE)
  assert bool(said) == (colour == 0) and all("draws black on a transparent background" in text for text in said)
  if np.ndim(colour) == 0:
    np.testing.assert_array_equal(read(encoded(Image.merge("LA", [Image.new("L", (WIDTH, HEIGHT), colour), vessels()]))), TREE)


def test_black_strokes_above_transparent_white():
  """Drawing programs leave the paper's colour under what is transparent."""
  shade = np.where(TREE[..., None], 0, 255) * np.ones(3)
  np.testing.assert_array_equal(read(encoded(np.dstack([shade, TREE8]).astype(np.uint8))), TREE)


def test_a_drawing_inside_a_transparent_surround_is_the_shade():
  disc = np.uint8(255) * DISC
  for factor in (255, 1, 2):
    values = np.dstack([(factor * TREE[..., None] * np.ones(3)), disc]).astype(np.uint8)
    np.testing.assert_array_equal(read(encoded(values)), TREE)
  faint = np.dstack([TREE8] * 3 + [np.full_like(TREE8, 9)])  # the same opacity everywhere hides nothing
  np.testing.assert_array_equal(read(encoded(faint)), TREE)


def test_palettes(said):
  """Black, red for arteries and blue for veins, as palette; and a palette whose drawn colour is the transparent one's
  opposite."""
  labels = Image.fromarray(np.where(TREE, 1 + (X > 70), 0).astype(np.uint8)).convert("P")
  labels.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
  np.testing.assert_array_equal(read(encoded(labels)), TREE)
  assert len(said) == 1 and "holds 2 colours besides black: in it, whatever is above 0 is read as vessel" in said[0]
  labels.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 90])
  np.testing.assert_array_equal(read(encoded(labels)), TREE)
  strokes = Image.fromarray(TREE.astype(np.uint8)).convert("P")
  strokes.putpalette([0] * 6)
  np.testing.assert_array_equal(read(encoded(strokes, transparency=0)), TREE)


@pytest.mark.parametrize("greatest", [2, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_class_labels_are_vessel_above_zero(tmp_path, greatest, kind, said):
  """Artery 1, vein 2, crossing 3: read as vessel, which is said once for the folder."""
  for name in "ab":
    Image.fromarray(np.where(TREE, 1 + X % greatest, 0).astype(kind)).save(tmp_path / f"{name}.tif")
  source = folders.FolderSource(tmp_path, ("tree",))
  for example in (source[0], source[1], source[0]):
    np.testing.assert_array_equal(example["tree"][..., 0], TREE8)
  assert len(said) == 1 and f"a.tif holds class labels 0 to {greatest}" in said[0] and "above 0 is read as vessel" in said[0]


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpeg_masks_are_cut_at_half(tmp_path, quality, said):
  for name in "ab":
    (tmp_path / f"{name}.jpg").write_bytes(encoded(vessels(), "JPEG", quality=quality))
  source = folders.FolderSource(tmp_path, ("tree",))
  for example in (source[0], source[1]):
    assert ((example["tree"][..., 0] > 0) == TREE).mean() > 0.995
  grey = np.asarray(Image.open(tmp_path / "a.jpg"))
  top = int(grey.max())
  share = 100 * ((grey > 5 * top // 255) & (grey < top - 5 * top // 255)).mean()
  if share:
    assert (
      len(said) == 1 and f"a.jpg has grey edges ({share:.1f} % of its pixels" in said[0] and "half of their greatest" in said[0]
    )


def test_anti_aliased_masks_are_cut_at_half(said):
  for smooth in (
    vessels(4).resize((WIDTH, HEIGHT), Image.Resampling.BOX),
    vessels().resize((420, 360), Image.Resampling.BICUBIC),
  ):
    for values in (np.asarray(smooth), np.asarray(smooth).astype(np.uint16) * 257):
      found = read(encoded(values))
      np.testing.assert_array_equal(found, np.asarray(smooth) > 127)
  assert len(said) == 1 and "grey edges" in said[0]


def probabilities():
  """What a network gives: certain in the middle of vessels, unsure at their edges and over much of the rest."""
  from scipy import ndimage

  edge = ndimage.distance_transform_edt(TREE) - ndimage.distance_transform_edt(~TREE)
  return (1 / (1 + np.exp(-edge / 1.5))).astype(np.float32)


GREYS = {
  "probabilities.png": np.rint(255 * probabilities()).astype(np.uint8),
  "probabilities16.png": np.rint(65535 * probabilities()).astype(np.uint16),
  "probabilities.tif": probabilities(),
  "probabilities.jpg": np.rint(255 * probabilities()).astype(np.uint8),
}
CLASSES = np.where(TREE, 60 * (1 + X % 4), 0).astype(np.uint8)


@pytest.mark.parametrize("name", [*GREYS, "classes.png", "classes16.png"])
def test_the_recipe_of_a_refusal_works_and_keeps_the_files(tmp_path, name):
  """Followed to the letter: the command of the sentence is run, and the folder is read; nothing is lost."""
  folder = tmp_path / "my eyes" / "masks"
  folder.mkdir(parents=True)
  is_label = name.startswith("classes")
  values = GREYS[name] if not is_label else CLASSES if "16" not in name else CLASSES.astype(np.uint16) * 100
  Image.fromarray(values).save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
  before = (folder / name).read_bytes()
  Image.fromarray(TREE8).save(folder / "right.png")
  right = (folder / "right.png").read_bytes()
  with pytest.raises(
    ValueError, match=rf"{name} is not a binary mask \(\d+ % of its pixels are neither background nor vessel\)"
  ) as found:
    folders.FolderSource(folder, ("tree",))[0]
  sentence = str(found.value)
  assert "\n" not in sentence
  arguments = shlex.split(re.search(r"python -m retree_jax\.data\.binarise (.*?) \(--above 0 where", sentence)[1])
  if is_label:
    arguments[-1] = "0"
  assert binarise.main(arguments) == 0
  source = folders.FolderSource(folder, ("tree",))
  assert source.names == sorted([name.rpartition(".")[0], "right"])
  got = source[source.names.index(name.rpartition(".")[0])]["tree"][..., 0] > 0
  truth = TREE if is_label else probabilities() > 0.5
  assert (got == truth).mean() > 0.998 and got.any()
  assert (folder / "originals" / name).read_bytes() == before and (folder / "right.png").read_bytes() == right


def test_black_on_white_is_refused_and_its_recipe_works(tmp_path):
  for name, values in (("a.png", 255 - TREE8), ("b.png", (~TREE).astype(np.uint8)), ("c.jpg", 255 - TREE8), ("d.png", TREE8)):
    Image.fromarray(values).save(tmp_path / name)
  with pytest.raises(ValueError, match=r"a.png says that 9\d % of its pixels are vessel: draw vessels white on black") as found:
    folders.FolderSource(tmp_path, ("tree",))[0]
  (tmp_path / "b.png").rename(tmp_path.parent / "b.png")  # of another depth: its own sentence names another threshold
  assert binarise.main(shlex.split(re.search(r"binarise (.*?); the old", str(found.value))[1])) == 0
  (tmp_path.parent / "b.png").rename(tmp_path / "b.png")
  with pytest.raises(ValueError, match="b.png says") as found:
    folders.FolderSource(tmp_path, ("tree",))[1]
  assert binarise.main(shlex.split(re.search(r"binarise (.*?); the old", str(found.value))[1])) == 0
  source = folders.FolderSource(tmp_path, ("tree",))
  assert source.names == ["a", "b", "c", "d"]
  for example in (source[i] for i in range(4)):
    assert ((example["tree"][..., 0] > 0) == TREE).mean() > 0.995


def test_settings_that_empty_a_mask_change_nothing(tmp_path, capsys):
  Image.fromarray(GREYS["probabilities.png"]).save(tmp_path / "a.png")
  Image.fromarray(GREYS["probabilities.png"] // 2).save(tmp_path / "b.png")
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  assert binarise.main([str(tmp_path), "--above", "200"]) == 2
  said = capsys.readouterr().err
  assert re.search(r"--above 200 would draw 0 % of .*b.png, which holds .*; give another --above, or add --invert", said)
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
  assert binarise.main([str(tmp_path), "--above", "60"]) == 0 == binarise.main([str(tmp_path), "--above", "90"])
  assert "were binary before; to convert them anew, move the files of" in capsys.readouterr().out
  assert binarise.main([str(tmp_path / "absent"), "--above", "1"]) == 2 and "Cannot list" in capsys.readouterr().err


def test_a_run_that_was_killed_between_two_files_goes_on(tmp_path, monkeypatch):
  for name in "ab":
    Image.fromarray(GREYS["probabilities.png"]).save(tmp_path / f"{name}.png")
  write = binarise.writing.write_bytes

  def dies(path, data):
    raise KeyboardInterrupt

  monkeypatch.setattr(binarise.writing, "write_bytes", dies)
  with pytest.raises(KeyboardInterrupt):
    binarise.binarise(tmp_path, 127)
  monkeypatch.setattr(binarise.writing, "write_bytes", write)
  assert binarise.binarise(tmp_path, 127) == 2
  source = folders.FolderSource(tmp_path, ("tree",))
  assert source.names == ["a", "b"] and all(
    (example["tree"][..., 0] > 0).sum() == (probabilities() > 0.5).sum() for example in source
  )


@pytest.mark.parametrize(
  "picture",
  [
    np.zeros_like(TREE8),
    rgba(0, np.zeros_like(TREE8)),
    np.zeros((HEIGHT, WIDTH), np.uint16),
    np.zeros((HEIGHT, WIDTH), bool),
    np.where((Y == 3) & (X == 3), 255, 0).astype(np.uint8),  # a speck
  ],
)
def test_empty_masks_are_refused_by_name(tmp_path, picture):
  (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(tmp_path / "eye_7.png")
  with pytest.raises(ValueError, match=r"eye_7.png is empty: draw the vessels white on black, or remove the file"):
    folders.FolderSource(tmp_path, ("tree",))[0]


def test_noise_of_jpeg_is_no_drawing():
  with pytest.raises(ValueError, match="is empty"):
    read(encoded((X % 3).astype(np.uint8), "JPEG", quality=100))


def test_a_single_thin_vessel_is_no_empty_mask():
  sparse = np.zeros((1000, 1000), np.uint8)
  sparse[500, 300:420] = 255
  assert (masks.read_tree(encoded(sparse), "it") > 0).sum() == 120


def test_full_masks_are_refused_by_name():
  for picture in (np.full_like(TREE8, 255), rgba(255, np.zeros_like(TREE8)), np.uint8(255) * DISC):
    with pytest.raises(ValueError, match=r"it says that \d+ % of its pixels are vessel"):
      read(encoded(picture))


@pytest.mark.parametrize("label", ["generated", "predicted", "expert"])
def test_machine_made_sets_may_hold_an_empty_mask(tmp_path, label, said):
  for kind, picture in (("images", PHOTO), ("masks", 0 * TREE8), ("fov", np.uint8(255) * DISC)):
    (tmp_path / kind).mkdir()
    Image.fromarray(picture).save(tmp_path / kind / "a.png")
  (tmp_path / "manifest.jsonl").write_text(json.dumps({"name": "a", "label": label}))
  source = folders.FolderSource(tmp_path)
  if label == "expert":
    with pytest.raises(ValueError, match="a.png is empty"):
      source[0]
  else:
    assert not source[0]["tree"].any() and len(said) == 1 and f"a.png, a {label} mask, is empty" in said[0]


def test_negative_values_are_refused():
  with pytest.raises(ValueError, match="it holds negative values: a mask is 0 for background"):
    read(encoded(np.where(TREE, 1, -1).astype(np.int32), "TIFF"))


def eye(root, fov, tree=TREE8):
  for kind, picture in (("images", PHOTO), ("masks", tree), ("fov", fov)):
    (root / kind).mkdir(parents=True, exist_ok=True)
    if picture is not None:
      Image.fromarray(picture).save(root / kind / "a.png")
  return root


def test_fields_of_view_that_cannot_be_are_refused_by_name(tmp_path):
  disc = np.uint8(255) * DISC
  for fields in (("image", "tree"), ("image",), ("tree",)):
    np.testing.assert_array_equal(folders.FolderSource(eye(tmp_path / "right", disc), fields)[0]["fov"][..., 0], disc)
    for name, fov, words in (
      ("empty", 0 * disc, r"fov/a.png is an empty field of view: draw the visible disc white on black, or remove the file"),
      ("inverted", 255 - disc, r"fov/a.png is an inverted field of view, with the middle of the photograph outside"),
    ):
      with pytest.raises(ValueError, match=words) as found:
        folders.FolderSource(eye(tmp_path / name, fov), fields)[0]
      assert "\n" not in str(found.value)
  half = np.where(X < 20, disc, 0) + np.where((Y > 80) & (X > 40), disc, 0)
  half[45:75, 66:74] = 255  # the middle lies inside
  with pytest.raises(
    ValueError, match=r"is an inverted field of view|fov/a.png holds only \d+ % of the vessels of .*masks/a.png"
  ):
    folders.FolderSource(eye(tmp_path / "half", half))[0]


def test_a_field_of_view_without_most_vessels_is_refused(tmp_path):
  """The mask is another eye's: it lies beside the disc."""
  fov = np.uint8(255) * (np.hypot(Y - 60, X - 70) < 40)
  tree = np.zeros_like(TREE8)
  tree[6:12, 50:90] = 255
  with pytest.raises(ValueError, match=r"fov/a.png holds only 0 % of the vessels of .*masks/a.png: check that the mask"):
    folders.FolderSource(eye(tmp_path / "given", fov, tree))[0]
  tree[6:12, 50:90] = 0
  tree[:10, :25] = 255
  root = eye(tmp_path / "found", None, tree)
  (root / "fov").rmdir()
  with pytest.raises(
    ValueError, match=r"The visible disc found in .*images/a.png holds only 0 % of the vessels of .*masks/a.png"
  ):
    folders.FolderSource(root)[0]
  (root / "manifest.jsonl").write_text('{"name": "a", "label": "generated"}')
  assert folders.FolderSource(root)[0]["tree"].any()


def test_the_recipe_for_an_inverted_field_of_view_works(tmp_path):
  root = eye(tmp_path, np.uint8(255) * ~DISC)
  with pytest.raises(ValueError, match="inverted") as found:
    folders.FolderSource(root)[0]
  assert binarise.main(shlex.split(re.search(r"binarise (.*?), or remove", str(found.value))[1])) == 0
  np.testing.assert_array_equal(folders.FolderSource(root)[0]["fov"][..., 0] > 0, DISC)


def test_real_masks_read_without_a_word_and_as_they_are(real_eyes, said):
  """CHASE_DB1 and HRF at its native size: two-valued files, read to exactly these values."""
  for name in ("CHASE_DB1", "HRF_native"):
    if not (real_eyes / name).is_dir():
      pytest.skip(f"needs {name}")
    source = folders.FolderSource(real_eyes / name)
    for i in range(0, len(source), 1 if name == "CHASE_DB1" else 9):
      example, stem = source[i], source.names[i]
      for kind, key in (("images", "image"), ("masks", "tree"), ("fov", "fov")):
        path = next((real_eyes / name / kind).glob(f"{stem}.*"))
        with Image.open(path) as picture:
          truth = np.asarray(picture.convert("RGB" if key == "image" else "L"))
        np.testing.assert_array_equal(np.squeeze(example[key]), truth)
  assert not said


def test_bytes_have_no_folder_to_convert():
  with pytest.raises(ValueError, match=r"tree of x is not a binary mask .*: correct the files and build the set again"):
    masks.read_tree(encoded(GREYS["probabilities.png"]), "tree of x")


def test_half_of_a_range():
  for values, half in ((np.uint8([0, 255]), 127), (np.uint8([0, 1]), 0), (np.uint16([4095]), 2047), (np.float32([1.0]), 0.5)):
    assert masks.half_range(values) == half
