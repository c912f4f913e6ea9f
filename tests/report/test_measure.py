"""Both sets are measured on masks that keep their vessels, whatever size they come in."""

import numpy as np
import pytest

from retree_jax.data import reduction, transforms
from retree_jax.metrics import topology
from retree_jax.report import measure


class Drawn:
  """One eye with a wavy vessel that is a fifth of a pixel wide at 64 pixels, drawn at several sizes."""

  title = "drawn"

  def __init__(self, side):
    self.side, self.names = side, ["eye"]

  def __len__(self):
    return 1

  def __getitem__(self, index):
    side, width = self.side, max(1, self.side // 320)
    rows = np.arange(side // 6, side - side // 6)
    columns = (side / 2 + side / 40 * np.sin(rows * 20 / side)).astype(int)
    tree = np.zeros((side, side, 1), np.uint8)
    for dx in range(width):
      tree[rows, columns + dx] = 255
    fov = np.full((side, side, 1), 255, np.uint8)
    return {"name": "eye", "image": fov.repeat(3, -1), "tree": tree, "fov": fov, "label": "expert"}


@pytest.mark.parametrize("side", [64, 320, 640, 1280])
def test_a_thin_vessel_is_one_vessel_at_any_size_that_it_comes_in(side):
  ((example,),) = [list(measure.fitted(Drawn(side), [0], (64, 64)))]
  tree = example["tree"]
  assert tree.shape == (64, 64, 1) and set(np.unique(tree)) == {0, 255}
  assert topology.betti_numbers(tree) == (1, 0)
  assert 40 <= (tree > 0).sum() <= 60
  if side > 64:
    assert (transforms.fit(Drawn(side)[0], (64, 64))["tree"] >= 128).sum() < 10  # what area averages would leave


def test_coverage_in_memory_is_cut_before_it_is_reduced():
  source = Drawn(640)
  grey = source[0]
  grey["tree"] = transforms.area_resize(grey["tree"], (320, 320))  # no mask any more
  grey |= {name: transforms.area_resize(grey[name], (320, 320)) for name in ("image", "fov")}

  class One(Drawn):
    def __getitem__(self, index):
      return grey

  (example,) = measure.fitted(One(320), [0], (64, 64))
  np.testing.assert_array_equal(example["tree"][..., 0], reduction.reduce_mask(transforms.binarise(grey["tree"]), (64, 64)))
