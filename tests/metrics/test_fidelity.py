"""Label fidelity on drawn pictures with known answers, and on real pairs."""

import numpy as np
import pytest

from retree_jax.data import sources, transforms
from retree_jax.metrics import fidelity

SIZE = 128


def _lines(offset=0):
  """Five lines, 3 px wide, and a disc of view."""
  tree = np.zeros((SIZE, SIZE), bool)
  for centre in (24, 44, 64, 84, 104):
    tree[:, centre - 1 + offset : centre + 2 + offset] = True
  y, x = np.ogrid[:SIZE, :SIZE]
  fov = (y - 63.5) ** 2 + (x - 63.5) ** 2 <= 62**2
  return tree, fov


def _photograph(tree, fov, depth=40, level=120, noise=0.0, slope=0.0, seed=0):
  """Green `level` on the retina (brighter to the right), `depth` less on vessels, black outside."""
  green = level + slope * np.linspace(-1, 1, SIZE)[None, :] - depth * tree
  green = green + noise * np.random.default_rng(seed).standard_normal((SIZE, SIZE))
  image = np.stack([np.full((SIZE, SIZE), 180.0), green, np.full((SIZE, SIZE), 60.0)], -1)
  return (np.clip(np.rint(image), 0, 255) * fov[..., None]).astype(np.uint8)


def test_perfect_label_has_the_drawn_contrast():
  tree, fov = _lines()
  found = fidelity.measures(_photograph(tree, fov), tree, fov)
  assert found["darker"] == 1 and found["separation"] == 1
  assert found["contrast"] == pytest.approx(40 / 120, abs=1e-6)


def test_uneven_light_does_not_matter():
  tree, fov = _lines()
  found = fidelity.measures(_photograph(tree, fov, slope=50), tree, fov)
  assert found["darker"] == 1 and found["separation"] > 0.999
  assert found["contrast"] == pytest.approx(40 / 120, abs=0.02)


def test_label_between_the_vessels_is_no_better_than_chance():
  tree, fov = _lines()
  beside, _ = _lines(offset=10)
  found = fidelity.measures(_photograph(tree, fov, noise=4), beside, fov)
  assert found["darker"] == pytest.approx(0.5, abs=0.1) and abs(found["contrast"]) < 0.02
  assert found["separation"] < 0.7


def test_no_vessels_at_all_is_chance():
  tree, fov = _lines()
  found = [fidelity.measures(_photograph(np.zeros_like(tree), fov, noise=10, seed=seed), tree, fov) for seed in range(8)]
  means = {name: np.mean([f[name] for f in found]) for name in fidelity.MEASURES}
  assert means == {
    "darker": pytest.approx(0.5, abs=0.02),
    "separation": pytest.approx(0.5, abs=0.02),
    "contrast": pytest.approx(0, abs=0.005),
  }


def test_bright_vessels_are_below_chance():
  tree, fov = _lines()
  assert fidelity.measures(_photograph(tree, fov, depth=-30), tree, fov)["separation"] == 0


@pytest.mark.parametrize("shift", [(0, 0), (0, 2), (0, -3)])
def test_shifted_labels_are_found_out(shift):
  """Crossed lines, so that both directions can be told; the label is the tree moved by -shift."""
  tree, fov = _lines()
  tree = tree | tree.T
  image = _photograph(tree, fov, noise=3)
  label = np.roll(tree, (-shift[0], -shift[1]), (0, 1))
  assert fidelity.best_shift([fidelity.shift_map(image, label, fov)]) == shift
  image = _photograph(tree.T, fov, noise=3)
  label = np.roll(tree.T, (-shift[1], -shift[0]), (0, 1))
  assert fidelity.best_shift([fidelity.shift_map(image, label, fov)]) == shift[::-1]


def test_grey_photograph_has_no_preferred_shift():
  tree, fov = _lines()
  flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
  assert fidelity.best_shift([fidelity.shift_map(flat, tree)]) == (0, 0)


def test_empty_and_full_trees_are_nan():
  tree, fov = _lines()
  image = _photograph(tree, fov)
  for odd in (np.zeros_like(tree), np.ones_like(tree)):
    assert all(np.isnan(v) for v in fidelity.measures(image, odd, fov).values())
  assert not fidelity.shift_map(image, np.zeros_like(tree), fov).any()


def test_summary_places_labels_between_chance_and_real():
  def records(level):
    return [{"darker": level, "separation": level, "contrast": level} for _ in range(4)] + [
      dict.fromkeys(fidelity.MEASURES, float("nan"))
    ]

  found = fidelity.summary(records(0.8), records(0.5), records(0.9))
  assert found["separation"]["position"] == pytest.approx(0.75)
  assert found["separation"]["generated"]["count"] == 4
  assert np.isnan(fidelity.summary(records(0.8), records(0.5), records(0.5))["darker"]["position"])


def test_bad_input_is_one_sentence():
  tree, fov = _lines()
  image = _photograph(tree, fov)
  with pytest.raises(ValueError, match="uint8"):
    fidelity.measures(image.astype(float), tree, fov)
  with pytest.raises(ValueError, match="one size"):
    fidelity.measures(image, tree[:64], fov)
  with pytest.raises(ValueError, match="threshold"):
    fidelity.measures(image, tree * 0.4, fov)
  with pytest.raises(ValueError, match="no labels"):
    fidelity.best_shift([])


def test_real_pairs_beat_shuffled_ones_by_far(real_eyes):
  eyes = sources.open_source(f"folder:{real_eyes / 'CHASE_DB1'}", split="all")
  eyes = [transforms.fit(eyes[i], (256, 256)) for i in (0, 5, 9, 14)]
  own = [fidelity.measures(e["image"], e["tree"] >= 128, e["fov"]) for e in eyes]
  others = zip(eyes, eyes[1:] + eyes[:1], strict=True)
  swapped = [fidelity.measures(e["image"], o["tree"] >= 128, e["fov"]) for e, o in others]
  found = fidelity.summary(own, swapped, own)
  assert found["separation"]["generated"]["low"] > 0.8
  assert found["separation"]["shuffled"]["high"] < 0.65
  maps = [fidelity.shift_map(e["image"], e["tree"] >= 128, e["fov"]) for e in eyes]
  assert max(map(abs, fidelity.best_shift(maps))) <= 1
