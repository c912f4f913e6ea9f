"""The paper's tree filter against arrays computed with the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from retree_jax import models
from retree_jax.models import torch_import
from tests.models import paper_reference

TINY = {"name": "discriminator", "width": 4, "heads": 1, "head_width": 4}


@pytest.mark.parametrize("part", ["discriminator_tree", "discriminator_fundus"])
def test_patch_scores_are_the_originals(original, part):
  if f"{part}/x" not in original:
    pytest.skip(f"the arrays of {part} are not part of the project")
  state_dict = {k.removeprefix(f"{part}/state_dict/"): v for k, v in original.items() if k.startswith(f"{part}/state_dict/")}
  settings, params = torch_import.convert(state_dict)
  assert settings == {"name": "discriminator", "width": 8, "heads": 4, "head_width": 64, "depth": 1}
  x, wanted = (rearrange(original[f"{part}/{name}"], "b c h w -> b h w c") for name in ("x", "output"))
  scores = jax.jit(models.build(settings).apply)(params, x)
  assert scores.shape == (len(x), 6, 6, 1)
  np.testing.assert_allclose(scores, wanted, rtol=1e-4)
  # The NumPy implementation, with which the denoiser is compared everywhere, is the original's too.
  reference = paper_reference.discriminator(paper_reference.Parameters(state_dict), x, width=8)
  np.testing.assert_allclose(reference, wanted, rtol=1e-5)


def test_the_paper_has_6_44_million_parameters():
  network = models.build({"name": "discriminator"})
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 1))))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(6.44e6, rel=1e-3)


def test_logits_conditions_and_sizes():
  network = models.build(TINY)
  x, cond = (jax.random.normal(jax.random.key(i), (2, 40, 24, c)) for i, c in enumerate((3, 1)))
  params = network.init(jax.random.key(2), x, None, cond)
  logits = jax.jit(lambda p, x, c: network.apply(p, x, None, c, logits=True))(params, x, cond)
  scores = jax.jit(network.apply)(params, jnp.concatenate([x, cond], -1))
  # 40 -> 20 -> 19 -> 9 -> 4 -> 3 and 24 -> 12 -> 11 -> 5 -> 2 -> 1
  assert logits.shape == scores.shape == (2, 3, 1, 1) and scores.dtype == jnp.float32
  np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), rtol=1e-4)
  with pytest.raises(ValueError, match="cannot take 16x64 pixels: height and width must be at least 20"):
    network.check_size(16, 64)
  with pytest.raises(ValueError, match="'width' of the discriminator must be at least 1"):
    models.build({"name": "discriminator", "width": 0})
