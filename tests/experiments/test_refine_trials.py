"""The parts of the refinement's variants that are not the shipped code: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import refine_trials
from retree_jax import models
from retree_jax.diffusion import process
from retree_jax.inference.sampler import make_schedule
from tests import small


def test_positions_run_from_corner_to_corner():
  out = refine_trials.with_position(jnp.zeros((2, 5, 9, 3)))
  assert out.shape == (2, 5, 9, 5)
  np.testing.assert_allclose(out[1, 0, 0, 3:], [-1, -1])
  np.testing.assert_allclose(out[1, 4, 2, 3:], [1, -0.5])


def test_a_network_of_x0_gives_the_v_of_its_x0():
  class Knows(models.Network):
    def apply(self, params, x, t, cond=None, **kw):
      return params

  class Task:
    schedule = make_schedule(small.config().diffusion)
    network = Knows({}, None)

  x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 1))
  t = jnp.array([300.0, 600.0, 900.0])
  alpha, sigma = Task.schedule.alpha_sigma(t)
  xt = process.corrupt(x0, noise, alpha, sigma)
  v = refine_trials.x0_network(Task).apply(x0, xt, t)
  np.testing.assert_allclose(v, process.target(x0, noise, alpha, sigma, "v"), atol=1e-4)


def test_the_table_has_a_dash_where_nothing_was_measured():
  row = {"arm": "v", "steps": 7, "distance": 0.5}
  row |= {f"{outline} {name}": 1.0 for outline in ("whole", "cut") for name in refine_trials.SHOWN}
  row["cut branching_angle"] = None
  last = refine_trials.table([row]).splitlines()[-1]
  assert last == "| v | 7 | 1, 1, 1.0000, 1, 1.0 | 1, 1, 1.0000, 1, – | 0.50 |"
