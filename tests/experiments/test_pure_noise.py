"""What a stage predicts from pure noise, where the answer is known."""

import sys

import numpy as np
import pytest

from experiments import pure_noise
from retree_jax import checkpoint
from retree_jax.cli import errors
from tests import small


class Knows:
  """Predicts v = -x0 of the mean eye, as it should in pure noise; or copies the noise's blocks."""

  def __init__(self, copies: float):
    self.copies = copies

  def apply(self, params, x, t, cond=None):
    return 0.5 - self.copies * x


def test_the_mean_eye_has_no_spread():
  config = small.config(diffusion__prediction="v")
  loaded = checkpoint.Loaded(config, {}, Knows(0.0), 0, "")
  found = pure_noise.predicted(loaded, num=4)["tree"]
  assert found.shape == (4, 16, 16, 1)
  np.testing.assert_allclose(found, 0.25, atol=1e-3)  # x0 = -0.5 in [-1, 1]
  assert pure_noise.spread(found) < 1e-6


def test_what_follows_the_noise_has_its_spread():
  loaded = checkpoint.Loaded(small.config(diffusion__prediction="v"), {}, Knows(1.0), 0, "")
  found = pure_noise.predicted(loaded, num=400)["tree"]
  # Means of 64 independent pixels of standard deviation 1/2.
  assert pure_noise.spread(found) == pytest.approx(0.5 / 8, rel=0.1)


def test_samples_see_noise_of_their_own():
  loaded = checkpoint.Loaded(small.config(diffusion__prediction="v"), {}, Knows(1.0), 0, "")
  three, two = (pure_noise.predicted(loaded, num=n)["tree"] for n in (3, 2))
  np.testing.assert_array_equal(three[:2], two)
  assert np.abs(three[0] - three[1]).max() > 0.1


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    (("--stage", "superres"), "superres is a superres stage, which does not start from noise"),
    (("--stage", "tree", "--num", "1"), "--num=1 is too small for a standard deviation"),
  ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["pure_noise", *arguments])
  assert errors.run(pure_noise.main) == 2
  assert sentence in capsys.readouterr().err
