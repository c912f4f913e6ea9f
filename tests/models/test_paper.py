"""The paper's denoiser against arrays computed with the original, its formulas in NumPy, and the promises of its docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from retree_jax import losses, models
from retree_jax.models import torch_import
from tests.models import paper_reference

TINY = {"name": "paper_denoiser", "dim": 64, "time_dim": 16, "heads": 2, "head_width": 8}


class Original:
  """One of the original's denoisers: its parameters as ours, and its arrays, NHWC."""

  def __init__(self, folder, part):
    with np.load(folder / "retree_network.npz", allow_pickle=False) as file:
      self.arrays = {k.removeprefix(f"{part}/"): file[k] for k in file if k.startswith(f"{part}/")}
    start = "state_dict/"
    self.state_dict = {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}
    self.settings, self.params = torch_import.convert(self.state_dict)
    self.network = models.build(self.settings)
    self.t = jnp.asarray(self.arrays["t"])
    self.cond = self.image("mask") if part == "fundus" else None

  def image(self, name):
    return jnp.asarray(rearrange(self.arrays[name], "b c h w -> b h w c"))


@pytest.fixture(scope="module", params=["tree", "fundus"])
def whole(request, parity_dir):
  return Original(parity_dir, request.param)


@pytest.fixture(scope="module")
def computed(whole):
  """((loss, output), gradients) of our network, compiled once for all the tests here."""

  def loss(params):
    output = whole.network.apply(params, whole.image("x"), whole.t, whole.cond)
    return jnp.mean(losses.noise_loss(output, whole.image("noise"), 1.0, 1.0)), output

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(whole.params)


def test_settings_are_read_from_the_shapes(whole):
  dim, time_dim, _, _, channels, _ = whole.arrays["config"]
  assert whole.settings == {
    "name": "paper_denoiser",
    "dim": dim,
    "time_dim": time_dim,
    "out_channels": 3 if channels > 1 else 1,
    "heads": 4,
    "head_width": 64,
    "depth": 1,
  }


def test_forward_and_loss_are_the_originals(whole, computed):
  (loss, output), _ = computed
  wanted = whole.image("output")
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  assert np.linalg.norm(output - wanted) < 2e-5 * np.linalg.norm(wanted)
  np.testing.assert_allclose(loss, whole.arrays["loss"], rtol=1e-5)


def test_the_numpy_implementation_is_the_original(whole):
  """The tests below compare with it where the original's denoisers are not available."""
  x = np.asarray(whole.image("x") if whole.cond is None else jnp.concatenate([whole.image("x"), whole.cond], -1), np.float64)
  wanted = np.asarray(whole.image("output"))
  parameters = paper_reference.Parameters(whole.state_dict)
  output = paper_reference.denoiser(parameters, x, whole.t, 256, 64, wanted.shape[-1])
  assert set(parameters) == set(whole.state_dict)
  assert np.linalg.norm(output - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_every_gradient_has_the_originals_norm(whole, computed):
  _, gradients = computed
  entries = torch_import.names(whole.settings)
  wanted = {k.removeprefix("grad_norm/"): v for k, v in whole.arrays.items() if k.startswith("grad_norm/")}
  assert set(entries) == set(wanted) and len(wanted) == len(jax.tree.leaves(gradients))
  for name, entry in entries.items():
    gradient = gradients
    for key in entry.path:
      gradient = gradient[key]
    np.testing.assert_allclose(np.linalg.norm(gradient), wanted[name], rtol=1e-3, err_msg=name)


def reference(dim, time_dim, channels, out_channels, heads, depth, size):
  """(original's parameters, x, t) of a random network, and a function of parameters, the NumPy implementation on them."""
  rng = np.random.default_rng(dim)
  x, t = rng.standard_normal((2, *size, channels)).astype(np.float32), np.array([3, 700])
  parameters = paper_reference.Parameters(seed=dim)

  def run(parameters):
    return paper_reference.denoiser(parameters, np.float64(x), t, dim, time_dim, out_channels, heads, depth)

  run(parameters)
  return parameters, x, t, run


@pytest.mark.parametrize(
  "dim, time_dim, channels, out_channels, heads, depth, size",
  [(32, 6, 4, 3, 1, 2, (32, 16)), (64, 16, 1, 1, 4, 1, (32, 32)), (96, 32, 2, 2, 3, 1, (16, 48))],
)
def test_forward_is_the_papers_formulas_at_any_width_and_size(dim, time_dim, channels, out_channels, heads, depth, size):
  parameters, x, t, run = reference(dim, time_dim, channels, out_channels, heads, depth, size)
  settings, params = torch_import.convert(parameters)
  assert settings == {
    "name": "paper_denoiser",
    "dim": dim,
    "time_dim": time_dim,
    "out_channels": out_channels,
    "heads": heads,
    "head_width": 64,
    "depth": depth,
  }
  output, wanted = jax.jit(models.build(settings).apply)(params, x, t), run(parameters)
  assert np.linalg.norm(output - wanted) < 2e-5 * np.linalg.norm(wanted)


def test_the_gradient_of_the_loss_is_the_derivative_of_the_papers_formulas():
  parameters, x, t, run = reference(64, 16, 1, 1, 4, 1, (32, 32))
  settings, params = torch_import.convert(parameters)
  network, noise = models.build(settings), np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
  gradients = jax.jit(jax.grad(lambda p: jnp.mean(losses.noise_loss(network.apply(p, x, t), noise))))(params)

  def loss(parameters):
    error = run(parameters) - noise
    return np.mean(error**2 + np.abs(error))

  # Along a random direction of all parameters, by a central difference.
  rng, step = np.random.default_rng(2), 1e-6
  direction = {name: rng.standard_normal(value.shape) for name, value in parameters.items()}
  ends = [paper_reference.Parameters({k: v + sign * step * direction[k] for k, v in parameters.items()}) for sign in (1, -1)]
  slope = (loss(ends[0]) - loss(ends[1])) / (2 * step)
  _, along = torch_import.convert(direction)
  products = jax.tree.map(lambda g, d: np.sum(np.float64(g) * d), gradients, along)
  assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("dim, millions", [(4096, 249.30), (2048, 62.9), (1024, 16.0), (512, 4.15)])
@pytest.mark.parametrize("channels", [1, 4])
def test_it_has_as_many_parameters_as_the_paper(dim, millions, channels):
  network = models.build({"name": "paper_denoiser", "dim": dim, "out_channels": 3 if channels > 1 else 1})
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, channels)), jnp.zeros(1)))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count / 1e6 == pytest.approx(millions, rel=3e-3)


@pytest.fixture(scope="module")
def tiny():
  """(parameters, x, t, cond, output) of a tiny network for non-square pictures with a condition."""
  network = models.build(TINY)
  keys = jax.random.split(jax.random.key(0), 3)
  x, cond = (jax.random.normal(k, (2, 16, 32, c)) for k, c in zip(keys[:2], (3, 1), strict=True))
  t = jnp.array([3.0, 500.0])
  params = network.init(keys[2], x, t, cond)
  run = jax.jit(network.apply)
  return params, x, t, cond, run


def test_non_square_pictures_and_the_order_of_condition_and_picture(tiny):
  params, x, t, cond, run = tiny
  out = run(params, x, t, cond)
  assert out.shape == (2, 16, 32, 1) and out.dtype == jnp.float32
  joined = run(params, jnp.concatenate([x, cond], -1), t.astype(int))
  np.testing.assert_allclose(out, joined, rtol=1e-5, atol=1e-5)
  # Each picture is answered for itself, at its own timestep.
  other = run(params, x.at[0].set(0), t.at[0].set(9), cond)
  np.testing.assert_allclose(out[1], other[1], rtol=1e-5, atol=1e-5)
  assert np.abs(other[0] - out[0]).max() > 1e-3
  assert np.abs(run(params, x, t.at[1].set(400), cond)[1] - out[1]).max() > 1e-3


def test_bfloat16_keeps_parameters_and_output_in_float32(tiny):
  params, x, t, cond, run = tiny
  assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  half = jax.jit(models.build({**TINY, "dtype": "bfloat16"}).apply)(params, x, t, cond)
  full = run(params, x, t, cond)
  assert half.dtype == jnp.float32
  difference = np.linalg.norm(half - full) / np.linalg.norm(full)
  assert 1e-3 < difference < 0.15  # it did compute with 8 bits, and rounds no worse than that over 27 layers


def test_initial_parameters_are_pytorchs(tiny):
  params = tiny[0]
  kernel = params["bottleneck_1"]["conv_0"]["kernel"]
  assert kernel.shape == (3, 3, 32, 32)
  bound = 1 / np.sqrt(9 * 32)
  assert 0.99 * bound < np.abs(kernel).max() <= bound
  assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.02)
  bias = params["vit_1"]["mlp_0_0"]["bias"]  # 16 inputs
  assert 0.9 / np.sqrt(16) < np.abs(bias).max() <= 1 / np.sqrt(16)
  assert params["vit_0"]["temperature_0"] == pytest.approx(np.log(8**-0.5))


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"dim": 100}, "'dim' of the paper's denoiser must be a positive multiple of 32, for instance 512, not 100"),
    ({"time_dim": 15}, "'time_dim' of the paper's denoiser must be even and at least 2, not 15"),
    ({"heads": 0}, "'heads' of the paper's denoiser must be at least 1"),
    ({"out_channels": -1}, "'out_channels' of the paper's denoiser must be at least 1"),
  ],
)
def test_bad_settings_are_answered_in_a_sentence(settings, words):
  with pytest.raises(ValueError, match=words):
    models.build({"name": "paper_denoiser", **settings})


def test_bad_input_is_answered_in_a_sentence():
  network = models.build(TINY)
  with pytest.raises(ValueError, match="cannot take 64x40 pixels: .* multiples of 16, for instance 64x32"):
    network.check_size(64, 40)
  with pytest.raises(ValueError, match="needs the timesteps t"):
    network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
