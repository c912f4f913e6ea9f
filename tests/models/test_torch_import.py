"""Published checkpoints: the same numbers after the import, at any size, and a sentence for every damaged file."""

import importlib.util
import pathlib
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import models
from retree_jax.models import torch_import

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def torch():
  return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transcription(torch):
  """The paper's networks in PyTorch, written from the same description as ours and apart from it."""
  path = ROOT / "experiments" / "benchmarks" / "torch_denoiser.py"
  spec = importlib.util.spec_from_file_location("torch_denoiser", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def arrays_of(module):
  return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def nhwc(x):
  return jnp.asarray(np.asarray(x).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("part", ["tree", "fundus"])
def test_published_format_gives_the_originals_numbers(torch, parity_dir, part):
  settings, params = torch_import.convert(torch_import.read(parity_dir / f"{part}.pth.tar"))
  with np.load(parity_dir / "retree_network.npz", allow_pickle=False) as file:
    arrays = {k.removeprefix(f"{part}/"): file[k] for k in file if k.startswith(f"{part}/")}
  start = "state_dict/"
  same_settings, same = torch_import.convert({k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)})
  assert settings == same_settings
  jax.tree.map(np.testing.assert_array_equal, params, same)
  if part == "tree":  # the other one's numbers are compared in test_paper.py
    output = jax.jit(models.build(settings).apply)(params, nhwc(arrays["x"]), arrays["t"])
    wanted = nhwc(arrays["output"])
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_the_transcription_is_the_original_too(torch, transcription, parity_dir):
  # The benchmark measures against it, so it has to be the same network.
  with np.load(parity_dir / "retree_network.npz", allow_pickle=False) as file:
    for part in ("fundus", "discriminator_fundus"):
      arrays = {k.removeprefix(f"{part}/"): file[k] for k in file if k.startswith(f"{part}/")}
      state_dict = {
        k.removeprefix("state_dict/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("state_dict/")
      }
      x = torch.from_numpy(arrays["x"])
      if part == "fundus":
        network = transcription.Denoiser(256, 64, channels=4)
        given = torch.cat([x, torch.from_numpy(arrays["mask"])], dim=1), torch.from_numpy(arrays["t"])
      else:
        network, given = transcription.Discriminator(x.shape[1], 8), (x,)
      network.load_state_dict(state_dict)
      with torch.no_grad():
        np.testing.assert_allclose(network(*given), arrays["output"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
  "dim, time_dim, channels, depth, heads, size", [(32, 6, 4, 2, 1, (32, 16)), (96, 32, 1, 1, 3, (16, 48))]
)
def test_other_widths_depths_and_sizes(torch, transcription, dim, time_dim, channels, depth, heads, size):
  torch.manual_seed(dim)
  original = transcription.Denoiser(dim, time_dim, channels, depth, heads)
  with torch.no_grad():
    for value in original.parameters():  # the norms' ones and zeros would hide a mistaken place
      value += 0.1 * torch.randn_like(value) if value.ndim < 2 else 0
  settings, params = torch_import.convert({f"module.{name}": value for name, value in arrays_of(original).items()})
  assert settings == {
    "name": "paper_denoiser",
    "dim": dim,
    "time_dim": time_dim,
    "out_channels": 3 if channels > 1 else 1,
    "heads": heads,
    "head_width": 64,
    "depth": depth,
  }
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
  x, t = torch.randn(2, channels, *size), torch.tensor([3, 700])
  with torch.no_grad():
    wanted = nhwc(original(x, t))
  output = jax.jit(models.build(settings).apply)(params, nhwc(x), t.numpy())
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_discriminators_of_other_widths_and_sizes(torch, transcription):
  torch.manual_seed(0)
  original = transcription.Discriminator(channels=3, width=4, depth=2, heads=2)
  settings, params = torch_import.convert(arrays_of(original))
  assert settings == {"name": "discriminator", "width": 4, "heads": 2, "head_width": 64, "depth": 2}
  x = torch.randn(2, 3, 48, 40)
  with torch.no_grad():
    wanted = nhwc(original(x))
  scores = jax.jit(models.build(settings).apply)(params, nhwc(x))
  np.testing.assert_allclose(scores, wanted, rtol=1e-4)


@pytest.fixture(scope="module")
def state_dict(transcription):
  return arrays_of(transcription.Denoiser(32, 8))


def test_files_as_the_original_saves_them(torch, state_dict, tmp_path):
  tensors = {f"module.{k}": torch.from_numpy(v).double() for k, v in state_dict.items()}
  torch.save(
    {"state_dict": tensors, "optimizer": {"state": {}, "param_groups": [{"lr": 3e-4}]}, "epoch": 3}, tmp_path / "whole.pth.tar"
  )
  torch.save(tensors, tmp_path / "bare.pth", _use_new_zipfile_serialization=False)
  for name in ("whole.pth.tar", "bare.pth"):
    read = torch_import.read(tmp_path / name)
    assert set(read) == set(state_dict)
    assert all(value.dtype == np.float32 and np.array_equal(value, state_dict[k]) for k, value in read.items())


class Malicious:
  """Unpickled, it writes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_a_file_cannot_run_code(torch, tmp_path):
  trace = tmp_path / "trace"
  torch.save({"state_dict": {"initial.0.weight": torch.zeros(1)}, "optimizer": Malicious(trace)}, tmp_path / "evil.pth.tar")
  (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(trace)))
  for name in ("evil.pth.tar", "evil.pkl"):
    with pytest.raises(ValueError, match="damaged or no PyTorch checkpoint of plain tensors .* could run code"):
      torch_import.read(tmp_path / name)
  assert not trace.exists()


def test_damaged_files_are_answered_in_a_sentence(torch, state_dict, tmp_path, monkeypatch):
  path = tmp_path / "cut.pth.tar"
  with pytest.raises(ValueError, match="There is no checkpoint file"):
    torch_import.read(path)
  torch.save({"state_dict": {k: torch.from_numpy(v) for k, v in state_dict.items()}}, path)
  whole = path.read_bytes()
  for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint at all"):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged or no PyTorch checkpoint"):
      torch_import.read(path)
  for other in ([1, 2], {"state_dict": {}}, {"state_dict": {"epoch": 3}}):
    torch.save(other, path)
    with pytest.raises(ValueError, match="holds no state_dict of tensors"):
      torch_import.read(path)
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ValueError, match="needs PyTorch: pip install 'retree-jax\\[torch\\]'"):
    torch_import.read(path)


def changed(state_dict, **changes):
  """The state dict with parameters (dots written as __) replaced, or left out where None."""
  new = {**state_dict, **{k.replace("__", "."): v for k, v in changes.items()}}
  return {k: v for k, v in new.items() if v is not None}


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"last__conv__bias": None}, "last.conv.bias is missing in this checkpoint"),
    ({"initial__0__weight": None}, "initial.0.weight is missing"),
    ({"transformer_blocks__1__layers__0__1__fn__fn__net__0__bias": None}, "net.0.bias is missing"),
    ({"initial__9__weight": np.zeros(3)}, "initial.9.weight is not one that the original has"),
    ({"last__conv__weight": np.zeros((1, 1, 3, 3))}, "last.conv.weight .* shape \\(1, 1, 3, 3\\), which does not fit"),
    ({"bottleneck_blocks__0__double_conv__0__weight": np.zeros(7)}, "shape \\(7,\\), which does not fit"),
    (
      {"bottleneck_blocks__0__double_conv__0__weight": np.zeros((16, 8, 1, 1))},
      "does not fit a network with dim 32, time_dim 8",
    ),
    ({"initial__0__weight": np.zeros((2, 1, 3, 3))}, "does not fit a network with dim 64"),
    ({"initial__0__weight": np.zeros(2)}, "initial.0.weight .* the original has 4 axes"),
    ({"transformer_blocks__0__layers__0__0__fn__fn__to_out__0__weight": np.zeros((4, 100))}, "has 100 channels"),
    ({"initial__1__bias": np.array([np.nan])}, "initial.1.bias .* not finite numbers"),
    ({"initial__1__bias": "three"}, "initial.1.bias .* not finite numbers"),
    ({"bottleneck_blocks__0__double_conv__0__weight": None}, "not a checkpoint of the original's"),
  ],
)
def test_damaged_state_dicts_are_answered_in_a_sentence(state_dict, changes, words):
  with pytest.raises(ValueError, match=words):
    torch_import.convert(changed(state_dict, **changes))
  with pytest.raises(ValueError, match="it holds nothing"):
    torch_import.convert({})
