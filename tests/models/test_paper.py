"""The paper's denoiser against arrays computed with the original, and the promises of its own docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import losses, models
from retree_jax.diffusion import process, samplers, schedules
from retree_jax.models import torch_import

TINY = {"name": "paper_denoiser", "dim": 64, "time_dim": 16, "heads": 2, "head_width": 8}


class Original:
  """One of the networks in the parity file: its parameters as ours, and its arrays, NHWC."""

  def __init__(self, folder, part):
    with np.load(folder / "retree_network.npz", allow_pickle=False) as file:
      self.arrays = {k.removeprefix(f"{part}/"): file[k] for k in file if k.startswith(f"{part}/")}
    start = "state_dict/"
    state_dict = {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}
    self.settings, self.params = torch_import.convert(state_dict)
    self.network = models.build(self.settings)
    self.t = jnp.asarray(self.arrays["t"])
    self.cond = self.image("mask") if part == "fundus" else None

  def image(self, name):
    return jnp.asarray(self.arrays[name].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module", params=["tree", "fundus"])
def original(request, parity_dir):
  return Original(parity_dir, request.param)


@pytest.fixture(scope="module")
def computed(original):
  """((loss, output), gradients) of our network, compiled once for all the tests here."""

  def loss(params):
    output = original.network.apply(params, original.image("x"), original.t, original.cond)
    return jnp.mean(losses.noise_loss(output, original.image("noise"), 1.0, 1.0)), output

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(original.params)


def test_settings_are_read_from_the_shapes(original):
  dim, time_dim, _, _, channels, _ = original.arrays["config"]
  assert original.settings == {
    "name": "paper_denoiser",
    "dim": dim,
    "time_dim": time_dim,
    "out_channels": 3 if channels > 1 else 1,
    "heads": 4,
    "head_width": 64,
    "depth": 1,
  }


def test_forward_and_loss_are_the_originals(original, computed):
  (loss, output), _ = computed
  wanted = original.image("output")
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  assert np.linalg.norm(output - wanted) < 2e-5 * np.linalg.norm(wanted)
  np.testing.assert_allclose(loss, original.arrays["loss"], rtol=1e-5)


def test_every_gradient_has_the_originals_norm(original, computed):
  _, gradients = computed
  entries = torch_import.names(original.settings)
  wanted = {k.removeprefix("grad_norm/"): v for k, v in original.arrays.items() if k.startswith("grad_norm/")}
  assert set(entries) == set(wanted) and len(wanted) == len(jax.tree.leaves(gradients))
  for name, entry in entries.items():
    gradient = gradients
    for key in entry.path:
      gradient = gradient[key]
    np.testing.assert_allclose(np.linalg.norm(gradient), wanted[name], rtol=1e-3, err_msg=name)


def test_one_ancestral_step_is_the_originals(original, computed):
  (_, output), _ = computed
  schedule = schedules.make("paper", int(original.arrays["config"][-1]))
  np.testing.assert_allclose(schedule.alpha_bar, original.arrays["alpha_bar"], rtol=3e-6)
  t = original.arrays["t"]
  now, after = schedule.levels(t), schedule.levels(t - 1)
  x0 = process.to_x0(output, original.image("x"), *now, "eps")
  stepped = samplers.ddpm_step(original.image("x"), x0, *now, *after, original.image("step_noise"))
  wanted = original.image("x_prev")
  np.testing.assert_allclose(stepped, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


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
    ({"dim": 100}, "multiple of 32"),
    ({"time_dim": 15}, "even"),
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
