"""VGG19: the same activations as PyTorch, from every file format, clear words where weights lack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.models.pretrained import vgg


def _random_weights(blocks, seed=0):
  """He-initialised weights in Keras' layout (BGR kernels), as flat .npz names."""
  rng = np.random.default_rng(seed)
  arrays, channels = {}, 3
  for layer in vgg.LAYERS:
    block = int(layer[5])
    if block > blocks:
      break
    out = vgg.CHANNELS[block - 1]
    kernel = rng.standard_normal((3, 3, channels, out), np.float32) * np.float32(np.sqrt(2 / (9 * channels)))
    arrays[f"{layer}/kernel"], arrays[f"{layer}/bias"] = kernel, rng.standard_normal(out, np.float32) * 0.1
    channels = out
  return arrays


def _images(seed=1, shape=(2, 24, 40, 3)):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _as_torch_names(arrays):
  """torchvision's position of each layer, counted here independently of the module."""
  positions = dict(zip(vgg.LAYERS, (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34), strict=True))
  return {
    f"features.{positions[k.split('/')[0]]}.{'weight' if k.endswith('kernel') else 'bias'}": (
      np.ascontiguousarray(v.transpose(3, 2, 0, 1)) if v.ndim == 4 else v
    )
    for k, v in arrays.items()
  }


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory):
  path = tmp_path_factory.mktemp("vgg") / "keras.npz"
  np.savez(path, **_random_weights(3))
  return path


def test_torchvision_file_gives_torchs_activations(tmp_path):
  torch = pytest.importorskip("torch", reason="compares with PyTorch")
  arrays = _as_torch_names(_random_weights(5))
  modules, channels = [], 3
  for block, count in enumerate((2, 2, 4, 4, 4)):
    for _ in range(count):
      modules += [torch.nn.Conv2d(channels, vgg.CHANNELS[block], 3, padding=1), torch.nn.ReLU()]
      channels = vgg.CHANNELS[block]
    modules.append(torch.nn.MaxPool2d(2, 2))
  reference = torch.nn.Sequential(*modules)
  state = {k: torch.from_numpy(v) for k, v in arrays.items()}
  reference.load_state_dict({k.removeprefix("features."): v for k, v in state.items()})
  path = tmp_path / "vgg19.pth"
  torch.save({**state, "classifier.0.weight": torch.zeros(2, 2)}, path)

  images = _images(shape=(1, 32, 48, 3))
  x = torch.from_numpy(((images + 1) / 2).transpose(0, 3, 1, 2).copy())
  mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
  x = (x - mean) / std
  expected = {}
  names = {0: "conv1_1", 8: "relu2_2", 9: "pool2", 17: "relu3_4", 34: "conv5_4", 35: "relu5_4", 36: "pool5"}
  with torch.no_grad():
    for i, module in enumerate(reference):
      x = module(x)
      if i in names:
        expected[names[i]] = x.clone().numpy().transpose(0, 2, 3, 1)

  params = vgg.load_weights(path)
  found = vgg.features(params, images, tuple(expected), precision="highest")
  for name, value in expected.items():
    assert found[name].shape == value.shape
    np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max(), err_msg=name)


def test_keras_h5_old_new_and_npz_agree(tmp_path, three_blocks):
  h5py = pytest.importorskip("h5py", reason="reads Keras' format")
  arrays = _random_weights(3)
  old, saved, keras3 = tmp_path / "old.h5", tmp_path / "model.hdf5", tmp_path / "vgg.weights.h5"
  with h5py.File(old, "w") as a, h5py.File(saved, "w") as b, h5py.File(keras3, "w") as c:
    for number, layer in enumerate(k.split("/")[0] for k in arrays if k.endswith("kernel")):
      kernel, bias = arrays[f"{layer}/kernel"], arrays[f"{layer}/bias"]
      a[f"{layer}/{layer}_W_1:0"], a[f"{layer}/{layer}_b_1:0"] = kernel, bias
      b[f"model_weights/{layer}/{layer}/kernel:0"], b[f"model_weights/{layer}/{layer}/bias:0"] = kernel, bias
      suffix = f"_{number}" if number else ""
      c[f"layers/conv2d{suffix}/vars/0"], c[f"layers/conv2d{suffix}/vars/1"] = kernel, bias
    b["optimizer_weights/block1_conv1/kernel_m"] = np.zeros((3, 3, 3, 64), np.float32)
  expected = vgg.load_weights(three_blocks)
  for path in (old, saved, keras3):
    found = vgg.load_weights(path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_caffe_convention_is_bgr_minus_mean(three_blocks):
  """First layer by hand: pixels to 0..255, channels reversed, Keras' mean taken off, then the kernel."""
  arrays, images = _random_weights(3), _images()
  pixels = (images + 1)[..., ::-1] * 127.5 - np.array([103.939, 116.779, 123.68], np.float32)
  padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = arrays["block1_conv1/kernel"]
  expected = (
    sum(np.einsum("bhwi,io->bhwo", padded[:, y : y + 24, x : x + 40], kernel[y, x]) for y in range(3) for x in range(3))
    + arrays["block1_conv1/bias"]
  )
  params = vgg.load_weights(three_blocks)
  found = vgg.features(params, images, ("conv1_1", "block1_conv1"), precision="highest")
  np.testing.assert_allclose(found["conv1_1"], expected, rtol=1e-4, atol=1e-2)
  np.testing.assert_allclose(found["block1_conv1"], np.maximum(expected, 0), rtol=1e-4, atol=1e-2)


def test_torch_names_in_npz_with_caffe_weights(tmp_path, three_blocks):
  path = tmp_path / "caffe_as_torch.npz"
  np.savez(path, **_as_torch_names(_random_weights(3)))
  jax.tree.map(np.testing.assert_array_equal, vgg.load_weights(path, "caffe"), vgg.load_weights(three_blocks))
  assert vgg.load_weights(path)["preprocess"]["std"][0] == pytest.approx(58.395)


def test_save_and_load_again(tmp_path, three_blocks):
  params = vgg.load_weights(three_blocks)
  vgg.save_weights(tmp_path / "again.npz", params)
  jax.tree.map(np.testing.assert_array_equal, vgg.load_weights(tmp_path / "again.npz"), params)


def test_jit_gradient_and_bfloat16(three_blocks):
  """The perceptual loss differentiates through it; bfloat16 stays close to float32."""
  params, images = vgg.load_weights(three_blocks), _images(shape=(1, 16, 16, 3))

  def loss(x):
    return jnp.mean(jnp.square(vgg.features(params, x, ("relu3_4",))["relu3_4"]))

  gradient = jax.jit(jax.grad(loss))(images)
  direction = np.asarray(gradient) / np.linalg.norm(gradient)
  step = 1e-2
  slope = (loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
  assert float(slope) == pytest.approx(float(np.linalg.norm(gradient)), rel=0.05)
  exact = np.asarray(vgg.features(params, images)["relu3_4"])
  rough = np.asarray(vgg.features(params, images, dtype="bfloat16")["relu3_4"])
  assert np.linalg.norm(rough - exact) < 0.03 * np.linalg.norm(exact)


def test_missing_layers_are_said(three_blocks):
  params = vgg.load_weights(three_blocks)
  assert vgg.available(params)[-1] == "relu3_4" and len(vgg.available(params)) == 8
  assert vgg.features(params, _images(), ("pool3",))["pool3"].shape == (2, 3, 5, 256)
  with pytest.raises(ValueError, match="'relu4_1' is deeper than these VGG19 weights, which end at relu3_4"):
    vgg.features(params, _images(), ("relu1_1", "relu4_1"))
  for name in ("relu6_1", "relu1_3", "pool0", "block1_conv", "fc6", ""):
    with pytest.raises(ValueError, match="VGG19 has no layer"):
      vgg.features(params, _images(), (name,))


def test_bad_images(three_blocks):
  params = vgg.load_weights(three_blocks)
  with pytest.raises(ValueError, match="repeat a single channel"):
    vgg.features(params, _images(shape=(1, 8, 8, 1)))
  with pytest.raises(ValueError, match="too small"):
    vgg.features(params, _images(shape=(1, 2, 8, 3)))


def test_bad_files(tmp_path, monkeypatch):
  good = _random_weights(2)

  def refuse(pattern, name="x.npz", **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=pattern):
      vgg.load_weights(tmp_path / name)

  refuse("No VGG19 weights at", name="absent.npz")
  refuse("holds no VGG19 layers", a=np.zeros(3))
  refuse("lacks block1_conv2 before it", **{k: v for k, v in good.items() if "block1_conv2" not in k})
  refuse(r"should have shape \(3, 3, 3, 64\)", **{**good, "block1_conv1/kernel": np.zeros((5, 5, 3, 64))})
  refuse("found nothing", **{k: v for k, v in good.items() if k != "block2_conv1/bias"})
  refuse("is not finite", **{**good, "block1_conv1/bias": np.full(64, np.nan)})
  refuse("holds objects", a=np.array([{}], object))  # would have to be unpickled
  refuse("another network", **{"features.1.weight": np.zeros((64, 3, 3, 3))})  # VGG with batch norm
  (tmp_path / "x.bin").write_bytes(b"x")
  with pytest.raises(ValueError, match="known are"):
    vgg.load_weights(tmp_path / "x.bin")
  with pytest.raises(ValueError, match="write caffe or torchvision"):
    vgg.load_weights(tmp_path / "x.npz", "bgr")
  (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
  for name in ("cut.npz", "cut.h5", "cut.pth"):
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
    pytest.importorskip({"h5": "h5py", "pth": "torch", "npz": "numpy"}[name[4:]])
    with pytest.raises(ValueError, match="Cannot read"):
      vgg.load_weights(tmp_path / name)
  for module, name in (("torch", "cut.pth"), ("h5py", "cut.h5")):  # a machine without these packages
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match="pip install 'retree-jax"):
      vgg.load_weights(tmp_path / name)


def test_pickled_code_is_not_run(tmp_path):
  torch = pytest.importorskip("torch", reason="writes a PyTorch file")

  class Bomb:
    def __reduce__(self):
      return (open, (str(tmp_path / "ran"), "w"))

  torch.save({"features.0.weight": Bomb()}, tmp_path / "bomb.pth")
  with pytest.raises(ValueError, match="plain tensors"):
    vgg.load_weights(tmp_path / "bomb.pth")
  assert not (tmp_path / "ran").exists()


def test_real_weights_on_a_real_eye(real_eyes):
  """Edges of a photograph excite the real features far more than a flat image of the same mean colour."""
  from PIL import Image

  params = vgg.load_weights(real_eyes / "weights" / "vgg19_imagenet_block1to3.npz")
  with Image.open(sorted((real_eyes / "CHASE_DB1" / "images").iterdir())[0]) as file:
    photo = file.convert("RGB").resize((96, 96))
  image = np.asarray(photo, np.float32)[None] / 127.5 - 1
  flat = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape)
  energy, base = (np.asarray(vgg.features(params, x)["relu3_4"])[:, 4:-4, 4:-4] for x in (image, flat))
  assert np.isfinite(energy).all() and 10 < energy.mean() < 1000
  assert energy.std((0, 1, 2)).mean() > 20 * base.std((0, 1, 2)).mean()
