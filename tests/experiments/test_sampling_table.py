"""Rows of the steps-versus-quality table, where what is drawn is known."""

import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from configs import tree
from experiments import sampling_table
from retree_jax import tasks
from retree_jax.cli import errors
from retree_jax.inference.sampler import Sampler

FUNDUS = types.SimpleNamespace(config=ConfigDict({"data": {"condition": ("tree", "fov")}}))


@pytest.fixture(scope="module")
def real():
  return sampling_table.heldout("phantom:40", (64, 64), ("image", "tree", "fov"))


def painter(real):
  """Stands for a fundus stage that paints every held-out tree as its own photograph."""
  trees = [t.tobytes() for t in real["tree"]]

  def sample(loaded, changes, count, condition):
    assert set(condition) == {"tree", "fov"} and len(condition["tree"]) == count
    return {"image": np.stack([real["image"][trees.index(t.tobytes())] for t in condition["tree"]])}, 0.5

  return sample


def test_photographs_painted_perfectly(real, monkeypatch):
  monkeypatch.setattr(sampling_table, "sample", painter(real))
  count = len(real["tree"])
  assert count >= 6
  row = sampling_table.fundus_row(FUNDUS, {}, real, count)
  assert row["colour_error"] == [0, 0, 0] and row["seconds"] == 0.5
  assert row["separation"] > row["separation_shuffled"] + 0.1 and abs(row["separation_shuffled"] - 0.5) < 0.1
  assert row["distance"]["value"] < 1e-3 and row["distance"]["generated"] == count


def test_fewer_trees_are_taken_from_the_whole_set(real, monkeypatch):
  """Not the first few, which are one set's where several are joined."""
  seen = []
  paint = painter(real)
  monkeypatch.setattr(sampling_table, "sample", lambda *a: seen.append(a[3]["tree"]) or paint(*a))
  sampling_table.fundus_row(FUNDUS, {}, real, 3)
  places = [0, round((len(real["tree"]) - 1) / 2), len(real["tree"]) - 1]
  np.testing.assert_array_equal(seen[0], real["tree"][places])


def test_steps_are_read():
  assert [name for name, _ in sampling_table.settings("full")] == ["ddpm"]
  assert [c["num_steps"] for _, c in sampling_table.settings("5,10")] == [5] * 3 + [10] * 3
  with pytest.raises(ValueError, match="'many' is neither a number"):
    sampling_table.settings("many")
  assert sampling_table.scales("1, 1.5,") == ["1", "1.5"]
  for wrong in ("1,x", "-1", "nan", "inf"):
    with pytest.raises(ValueError, match="is not a number of at least 0"):
      sampling_table.scales(wrong)


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    ((), "no stage to sample from: give --tree"),
    (("--tree", "tree", "--num", "1"), "--num=1 is too small for a comparison"),
    (("--tree", "tree", "--guidance", "x"), "'x' is not a number of at least 0"),
  ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["table", "--real", "phantom:8", "--out", str(tmp_path / "out"), *arguments])
  assert errors.run(sampling_table.main) == 2
  assert sentence in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_a_table_without_rows_has_no_lines_of_its_own():
  assert sampling_table.markdown({"tree floor": {"value": 1.0, "low": None, "high": None}}) == "\n"


@pytest.mark.parametrize("steps", ["5", "full"])
def test_every_row_is_a_sampler_that_a_config_may_ask_for(steps):
  for name, changes in sampling_table.settings(steps):
    config = tree.get_config("tiny")
    config.sampler.update(changes)
    assert Sampler(config, tasks.make(config).network).config.sampler.name == name


def test_spacings_are_rows_of_their_own():
  rows = sampling_table.settings("10,full", "dpmpp_2m", "trailing,trailing_fine")
  assert [name for name, _ in rows] == ["dpmpp_2m", "dpmpp_2m trailing_fine", "ddpm"]
  assert rows[1][1] == {"name": "dpmpp_2m", "spacing": "trailing_fine", "num_steps": 10}
  for arguments in (("5", "euler"), ("5", "ddim", "full")):
    with pytest.raises(ValueError, match="is unknown: write some of"):
      sampling_table.settings(*arguments)


def test_power_of_photographs_is_one_for_the_real_ones_and_less_for_blurred_ones():
  rng = np.random.default_rng(0)
  real = {
    "image": rng.integers(0, 256, (2, 256, 256, 3), np.uint8),
    "tree": np.zeros((2, 256, 256, 1), np.uint8),
    "fov": np.full((2, 256, 256, 1), 255, np.uint8),
  }
  real["tree"][:, 100:104] = 255
  np.testing.assert_allclose(sampling_table._power(real["image"], real["tree"], real["fov"], real), 1)
  soft = ndimage.gaussian_filter(real["image"], (0, 1, 1, 0))
  finest, middle, coarse = sampling_table._power(soft, real["tree"], real["fov"], real)
  assert finest < 0.1 and finest < middle < coarse < 1
  small = {name: pixels[:, :64, :64] for name, pixels in real.items()}
  assert sampling_table._power(small["image"], small["tree"], small["fov"], small) is None
