"""The original's checkpoints become ours, and a file for another stage is refused."""

import sys

import numpy as np
import pytest

from configs import filter as filter_config
from configs import fundus, tree
from retree_jax import checkpoint, convert
from retree_jax.cli import errors

pytest.importorskip("torch", reason="needs PyTorch to read .pth.tar files")


def test_a_published_file_gives_the_original_output(parity_dir, tmp_path):
  convert.convert(fundus.get_config("paper"), parity_dir / "fundus.pth.tar", tmp_path / "out")
  loaded = checkpoint.load(tmp_path / "out", stage="fundus")
  with np.load(parity_dir / "retree_network.npz", allow_pickle=False) as arrays:
    x, mask, t, wanted = (arrays[f"fundus/{name}"] for name in ("x", "mask", "t", "output"))
  given = loaded.apply(loaded.params, x.transpose(0, 2, 3, 1), t, mask.transpose(0, 2, 3, 1))
  np.testing.assert_allclose(np.asarray(given).transpose(0, 3, 1, 2), wanted, rtol=1e-3, atol=1e-4)
  assert loaded.config.sampler.name == "ddpm" and loaded.config.model.dim == 256


@pytest.mark.parametrize(
  "config, sentence",
  [(tree, "has 4 input and 3 output channels, the tree stage 1 and 1"), (filter_config, "which the filter stage does not use")],
)
def test_a_file_of_another_stage_is_refused(parity_dir, tmp_path, config, sentence):
  with pytest.raises(ValueError, match=sentence):
    convert.convert(config.get_config("paper"), parity_dir / "fundus.pth.tar", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(parity_dir, tmp_path):
  with pytest.raises(ValueError, match="exists already"):
    convert.convert(fundus.get_config("paper"), parity_dir / "fundus.pth.tar", tmp_path)


def test_a_missing_flag_is_named(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["convert", "--config", "configs/tree.py:paper"])
  assert errors.run(convert.main) == 2
  assert capsys.readouterr().err == "error: --torch is missing; see --help\n"
