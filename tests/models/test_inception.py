"""The FID Inception network against an independent PyTorch transcription with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.models.pretrained import inception


@pytest.fixture(scope="module")
def state():
  """Random weights under the names of the published file, scaled to keep activations near one."""
  rng = np.random.default_rng(0)
  arrays = {}
  for name, (height, width, channels, out) in inception.shapes().items():
    scale = np.float32(np.sqrt(2 / (height * width * channels)))
    arrays[f"{name}.conv.weight"] = rng.standard_normal((out, channels, height, width), np.float32) * scale
    arrays[f"{name}.bn.weight"] = rng.uniform(0.8, 1.2, out).astype(np.float32)
    arrays[f"{name}.bn.bias"] = (rng.standard_normal(out) * 0.1).astype(np.float32)
    arrays[f"{name}.bn.running_mean"] = (rng.standard_normal(out) * 0.1).astype(np.float32)
    arrays[f"{name}.bn.running_var"] = rng.uniform(0.8, 1.2, out).astype(np.float32)
  arrays["fc.weight"], arrays["fc.bias"] = np.zeros((2, 2048), np.float32), np.zeros(2, np.float32)
  return arrays


def _torch_reference(torch, state, image):
  """The network from torchvision's module definitions and the PyTorch port's patches, paddings explicit."""
  F = torch.nn.functional
  tensors = {k: torch.from_numpy(v) for k, v in state.items()}

  def c(x, name, stride=1, padding=0):
    t = {k: tensors[f"{name}.{k}"] for k in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
    x = F.conv2d(x, t["conv.weight"], stride=stride, padding=padding)
    x = F.batch_norm(x, t["bn.running_mean"], t["bn.running_var"], t["bn.weight"], t["bn.bias"], eps=0.001)
    return F.relu(x)

  def chain(x, block, *steps):
    for name, *rest in steps:
      x = c(x, f"{block}.{name}", *rest)
    return x

  def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

  x = F.interpolate(image, (299, 299), mode="bilinear", align_corners=False)
  x = F.max_pool2d(c(c(c(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", 1, 1), 3, 2)
  x = F.max_pool2d(c(c(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
  for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
    x = torch.cat(
      [
        chain(x, b, ("branch1x1",)),
        chain(x, b, ("branch5x5_1",), ("branch5x5_2", 1, 2)),
        chain(x, b, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1)),
        chain(average(x), b, ("branch_pool",)),
      ],
      1,
    )
  b = "Mixed_6a"
  x = torch.cat(
    [
      chain(x, b, ("branch3x3", 2)),
      chain(x, b, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 2)),
      F.max_pool2d(x, 3, 2),
    ],
    1,
  )
  h, v = (0, 3), (3, 0)
  for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
    x = torch.cat(
      [
        chain(x, b, ("branch1x1",)),
        chain(x, b, ("branch7x7_1",), ("branch7x7_2", 1, h), ("branch7x7_3", 1, v)),
        chain(
          x,
          b,
          ("branch7x7dbl_1",),
          ("branch7x7dbl_2", 1, v),
          ("branch7x7dbl_3", 1, h),
          ("branch7x7dbl_4", 1, v),
          ("branch7x7dbl_5", 1, h),
        ),
        chain(average(x), b, ("branch_pool",)),
      ],
      1,
    )
  b = "Mixed_7a"
  x = torch.cat(
    [
      chain(x, b, ("branch3x3_1",), ("branch3x3_2", 2)),
      chain(x, b, ("branch7x7x3_1",), ("branch7x7x3_2", 1, h), ("branch7x7x3_3", 1, v), ("branch7x7x3_4", 2)),
      F.max_pool2d(x, 3, 2),
    ],
    1,
  )
  for b in ("Mixed_7b", "Mixed_7c"):
    three = chain(x, b, ("branch3x3_1",))
    double = chain(x, b, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1))
    pool = average(x) if b == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1)
    x = torch.cat(
      [
        chain(x, b, ("branch1x1",)),
        c(three, f"{b}.branch3x3_2a", 1, (0, 1)),
        c(three, f"{b}.branch3x3_2b", 1, (1, 0)),
        c(double, f"{b}.branch3x3dbl_3a", 1, (0, 1)),
        c(double, f"{b}.branch3x3dbl_3b", 1, (1, 0)),
        chain(pool, b, ("branch_pool",)),
      ],
      1,
    )
  return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_same_features_as_pytorch(state, tmp_path):
  torch = pytest.importorskip("torch", reason="compares with PyTorch")
  torch.save({k: torch.from_numpy(v) for k, v in state.items()}, tmp_path / "pt_inception.pth")
  params = inception.load_weights(tmp_path / "pt_inception.pth")
  image = np.random.default_rng(1).uniform(-1, 1, (1, 60, 48, 3)).astype(np.float32)
  with torch.no_grad():
    expected = _torch_reference(torch, state, torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
  apply = jax.jit(inception.features, static_argnames="preprocessing")
  found = np.asarray(apply(params, image, preprocessing="pytorch"))
  assert found.shape == (1, inception.FEATURES) and expected.std() > 0.01
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.std())


def test_tensorflow_resize_by_hand():
  """TensorFlow 1 samples at i · in / out, from the top left corner, and repeats the last pixel."""
  ramp = jnp.asarray([0.0, 1.0, 4.0])[None, :, None, None] * jnp.ones((1, 3, 2, 1))
  found = inception.resize(ramp, 6, 2, half_pixel=False)[0, :, 0, 0]
  np.testing.assert_allclose(found, [0, 0.5, 1, 2.5, 4, 4], atol=1e-6)
  found = inception.resize(ramp, 6, 2, half_pixel=True)[0, :, 0, 0]
  np.testing.assert_allclose(found, [0, 0.25, 0.75, 1.75, 3.25, 4], atol=1e-6)
  same = np.random.default_rng(0).uniform(-1, 1, (1, 7, 5, 3)).astype(np.float32)
  np.testing.assert_array_equal(inception.resize(jnp.asarray(same), 7, 5, half_pixel=False), same)


def test_shapes_are_those_of_the_published_network():
  shapes = inception.shapes()
  assert len(shapes) == 94
  # torchvision's total less its side classifier and its last layer (of 1000 classes).
  assert sum(np.prod(s) + 2 * s[3] for s in shapes.values()) == 27_161_264 - 3_326_696 - 2_049_000
  assert shapes["Mixed_6b.branch7x7dbl_2"] == (7, 1, 128, 128) and shapes["Mixed_7c.branch1x1"][2] == 2048


def test_bad_weights(state, tmp_path):
  with pytest.raises(ValueError, match="No Inception weights at"):
    inception.load_weights(tmp_path / "absent.pth")
  (tmp_path / "x.h5").write_bytes(b"x")
  with pytest.raises(ValueError, match="known are .pth and .npz"):
    inception.load_weights(tmp_path / "x.h5")
  first = {k: v for k, v in state.items() if k.startswith("Conv2d_1a")}
  np.savez(tmp_path / "part.npz", **first)
  with pytest.raises(ValueError, match=r"lacks Conv2d_2a_3x3\.conv\.weight"):
    inception.load_weights(tmp_path / "part.npz")
  with pytest.raises(ValueError, match="torchvision's inception_v3 differs"):
    inception.convert({**state, "Mixed_5b.branch_pool.conv.weight": np.zeros((64, 192, 1, 1))})
  with pytest.raises(ValueError, match="is not finite"):
    inception.convert({**state, "Mixed_7c.branch_pool.bn.bias": np.full(192, np.inf)})


def test_bad_arguments():
  with pytest.raises(ValueError, match="write tensorflow or pytorch"):
    inception.features({}, np.zeros((1, 8, 8, 3)), "caffe")
  with pytest.raises(ValueError, match="repeat a single channel"):
    inception.features({}, np.zeros((1, 8, 8, 1)))
