"""Photograph, tree and FOV stay on top of each other, vessels keep their area, and a view is a function of its generator."""

import dataclasses

import numpy as np
import pytest

from retree_jax.data import transforms
from retree_jax.data.transforms import Augment, area_resize, fit

GEOMETRY = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 30.0, "scale": 0.2, "shift": 0.05, "elastic": 0.02}


def eye(height=128, width=128):
  """Drawn shapes: a disc as FOV, an L of two bars in it as tree, and a photograph that shows both."""
  y, x = np.mgrid[:height, :width]
  fov = (np.hypot(y - height / 2, x - width / 2) < 0.48 * min(height, width)) * np.uint8(255)
  tree = np.zeros((height, width), np.uint8)
  tree[height // 4 : 3 * height // 4, width // 3 : width // 3 + 6] = 255
  tree[3 * height // 4 - 6 : 3 * height // 4, width // 3 : 2 * width // 3] = 255
  image = np.stack([fov // 2, tree, 0 * fov], -1)
  return {"name": "drawn", "image": image, "tree": tree[..., None], "fov": fov[..., None], "label": "expert"}


def view(augment, seed=0, size=None, example=None):
  return augment(example or eye(), np.random.default_rng(seed), size)


def test_shrinking_is_the_exact_area_average():
  rng = np.random.default_rng(0)
  array = rng.integers(0, 256, (12, 18, 3), np.uint8)
  blocks = array.reshape(4, 3, 6, 3, 3).mean((1, 3))
  np.testing.assert_array_equal(area_resize(array, (4, 6)), np.rint(blocks))
  # 5 -> 2 rows: a pixel is one and a half rows and one whole, in halves of 2.5.
  column = np.uint8([[[100], [50], [200], [0], [10]]]).reshape(5, 1, 1)
  expected = np.rint([(100 + 50 + 100) / 2.5, (100 + 0 + 10) / 2.5])
  np.testing.assert_array_equal(area_resize(column, (2, 1)).ravel(), expected)
  for size in ((7, 5), (12, 5), (5, 18)):
    assert abs(area_resize(array, size).mean() - array.mean()) < 1
  np.testing.assert_array_equal(area_resize(array, (12, 18)), array)
  assert (area_resize(np.full((3, 4, 1), 77, np.uint8), (9, 5)) == 77).all()


def test_thin_vessels_keep_their_area():
  tree = np.zeros((256, 256, 1), np.uint8)
  tree[:, 101] = 255
  small = area_resize(tree, (32, 32))
  assert (small[:, 12] == 32).all() and small.sum() == small[:, 12].sum()  # 1 of 8 columns: 255 / 8
  assert not transforms.binarise(small).any() and transforms.binarise(np.uint8([127, 128, 255])).tolist() == [0, 255, 255]


def test_ways_to_fit():
  example = eye(100, 160)  # the disc has a radius of 48 around (50, 80): its box is rows 2..98, columns 32..128
  assert transforms.fit_box(example["fov"], (64, 64)) == (3, 33, 98, 128)
  assert transforms.fit_box(example["fov"], (64, 64), "squash") == (0, 0, 100, 160)
  assert transforms.fit_box(example["fov"], (64, 64), "crop") == (0, 30, 100, 130)
  assert transforms.fit_box(example["fov"], (64, 64), "pad") == (-30, 0, 130, 160)
  assert transforms.fit_box(example["fov"], (50, 100), "crop") == (10, 0, 90, 160)
  padded = fit(example, (64, 64), "pad")
  assert not padded["fov"][:12].any() and not padded["image"][:12].any() and padded["fov"][32, 32] == 255
  cropped = fit(example, (64, 64))["fov"][..., 0] > 0
  assert cropped[32].all() and cropped[:, 32].all() and not cropped[0, 0]
  assert fit(example, (40, 64))["tree"].shape == (40, 64, 1)
  with pytest.raises(ValueError, match="Unknown way to fit 'stretch': write one of fov, pad, crop, squash"):
    fit(example, (64, 64), "stretch")


def test_black_outside_the_disc_unless_asked_otherwise():
  example = eye()
  example["image"] = np.maximum(example["image"], 9)
  assert not fit(example, (64, 64))["image"][0, 0].any()
  assert (fit(example, (64, 64), blacken=False)["image"][0, 0] == 9).all()
  assert (example["image"] >= 9).all()  # the source's own array is untouched


def test_flips_are_exact():
  example = eye()
  once = dataclasses.replace(Augment.none(), horizontal_flip=1.0)
  twice = view(once, example=view(once))
  for key in ("image", "tree", "fov"):
    np.testing.assert_array_equal(view(once)[key], example[key][:, ::-1])
    np.testing.assert_array_equal(twice[key], example[key])
    np.testing.assert_array_equal(view(dataclasses.replace(Augment.none(), vertical_flip=1.0))[key], example[key][::-1])
    np.testing.assert_array_equal(view(Augment.none())[key], example[key])


@pytest.mark.parametrize("factor", [1, 2])
def test_photograph_tree_and_fov_move_together(factor):
  """The photograph's green channel is the tree and its red one the FOV, so they must stay so in every view."""
  geometry = dataclasses.replace(Augment.none(), **GEOMETRY)
  moved = 0
  for seed in range(8):
    example = eye(128 * factor, 128 * factor)
    out = view(geometry, seed, (128, 128), example)
    assert np.abs(out["image"][..., 1].astype(int) - out["tree"][..., 0]).mean() < 2
    assert (np.abs(out["image"][..., 0].astype(int) - out["fov"][..., 0] // 2) > 64).mean() < 0.01
    assert set(np.unique(out["fov"])) <= {0, 255}
    moved += np.abs(out["tree"].astype(int) - area_resize(example["tree"], (128, 128))).mean() > 4
  assert moved >= 7


def test_a_rotation_turns_by_the_angle():
  """A bar through the centre under rotation only: its direction is the angle that was drawn."""
  bar = {"fov": np.full((129, 129, 1), 255, np.uint8), "tree": np.zeros((129, 129, 1), np.uint8)}
  bar["tree"][62:67, 10:119] = 255
  angles = []
  for seed in range(20):
    tree = view(dataclasses.replace(Augment.none(), rotation=40.0), seed, example=bar)["tree"][..., 0] / 255.0
    y, x = np.mgrid[:129, :129] - np.array([(tree * i).sum() / tree.sum() for i in np.mgrid[:129, :129]])[:, None, None]
    angles.append(np.degrees(0.5 * np.arctan2(2 * (tree * x * y).sum(), (tree * (x * x - y * y)).sum())))
    assert abs(tree.sum() - 5 * 109) < 12
  assert max(np.abs(angles)) <= 40.5 and max(angles) > 15 and min(angles) < -15


def test_zoom_changes_areas_both_ways():
  square = {"fov": np.full((128, 128, 1), 255, np.uint8), "tree": np.zeros((128, 128, 1), np.uint8)}
  square["tree"][44:84, 44:84] = 255
  zooms = [
    np.sqrt(view(dataclasses.replace(Augment.none(), scale=0.25), s, example=square)["tree"].sum() / 255) / 40
    for s in range(30)
  ]
  assert 1 / 1.26 < min(zooms) < 0.9 and 1.1 < max(zooms) < 1.26
  assert abs(np.mean(np.log(zooms))) < 0.1


def test_elastic_bends_inside_and_keeps_the_rim():
  elastic = dataclasses.replace(Augment.none(), elastic=0.02)
  example = eye()
  for seed in range(5):
    out = view(elastic, seed, example=example)
    assert np.abs(out["tree"].astype(int) - example["tree"]).mean() > 1
    changed = (out["fov"] != example["fov"]).mean()
    assert changed < 0.02, "the disc must stay round"


def test_colour_changes_the_photograph_inside_the_disc_alone():
  colour = dataclasses.replace(Augment(), horizontal_flip=0.0, rotation=0.0, scale=0.0, shift=0.0, elastic=0.0)
  assert not colour.warps
  example = eye()
  out = view(colour, 3, example=example)
  np.testing.assert_array_equal(out["tree"], example["tree"])
  outside = example["fov"][..., 0] == 0
  np.testing.assert_array_equal(out["image"][outside], example["image"][outside])
  assert (out["image"] != example["image"])[~outside].any(-1).mean() > 0.5


def test_brightness_and_gamma_follow_their_formulas():
  grey = {"image": np.full((32, 32, 3), 100, np.uint8), "fov": np.full((32, 32, 1), 255, np.uint8)}
  bright = [view(dataclasses.replace(Augment.none(), brightness=0.2), s, example=grey)["image"] for s in range(40)]
  means = [b.mean() for b in bright]
  assert all((b == b[0, 0, 0]).all() for b in bright) and 80 <= min(means) < 88 and 112 < max(means) <= 120
  gamma = [view(dataclasses.replace(Augment.none(), gamma=0.5), s, example=grey)["image"].mean() for s in range(40)]
  low, high = (255 * (100 / 255) ** np.exp(e) for e in (0.5, -0.5))
  assert low - 1 <= min(gamma) < 80 and 120 < max(gamma) <= high + 1
  flat = view(dataclasses.replace(Augment.none(), contrast=0.5, saturation=0.5, hue=0.3), 1, example=grey)["image"]
  assert np.abs(flat.astype(int) - 100).max() <= 1  # grey has no contrast, saturation or hue to change


def test_noise_is_normal_with_the_deviation_that_was_drawn():
  grey = {"image": np.full((64, 64, 3), 128, np.uint8), "fov": np.full((64, 64, 1), 255, np.uint8)}
  deviations = []
  for seed in range(30):
    off = view(dataclasses.replace(Augment.none(), noise=20.0), seed, example=grey)["image"].astype(float) - 128
    deviations.append(off.std())
    if off.std() > 5:
      assert abs(off.mean()) < 0.05 * off.std() and abs((np.abs(off) < off.std()).mean() - 0.683) < 0.06
  assert max(deviations) < 20.5 and abs(np.mean(deviations) - 10) < 3  # uniform from 0 to 20


def test_a_view_is_a_function_of_its_generator():
  augment = Augment(blur=1.0)
  np.testing.assert_array_equal(view(augment, 5)["image"], view(augment, 5)["image"])
  assert (view(augment, 5)["image"] != view(augment, 6)["image"]).any()
  example = eye()
  before = {key: value.copy() for key, value in example.items() if isinstance(value, np.ndarray)}
  out = view(augment, 5, example=example)
  assert out["name"] == "drawn" and all((example[key] == value).all() for key, value in before.items())


def test_the_paper_flips_and_does_nothing_else():
  example, seen = eye(), set()
  for seed in range(40):
    tree = view(Augment.paper(), seed)["tree"]
    flips = [(v, h) for v in (1, -1) for h in (1, -1) if (tree == example["tree"][::v, ::h]).all()]
    seen.update(flips)
    assert len(flips) == 1
  assert len(seen) == 4


@pytest.mark.parametrize("name, value", [("rotation", 181), ("scale", -0.1), ("horizontal_flip", 1.1), ("noise", "2")])
def test_impossible_amounts(name, value):
  with pytest.raises(ValueError, match=rf"augment.{name} is {value!r}: give a number from 0 to"):
    Augment(**{name: value})


def test_sizes_that_do_not_divide():
  with pytest.raises(ValueError, match="Cannot augment 128x128 to 100x100"):
    view(Augment(), size=(100, 100))
