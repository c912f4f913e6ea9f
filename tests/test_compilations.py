"""The loop compiles its programs once: more steps, evaluations and previews compile nothing."""

import jax

from retree_jax import models, train
from tests import small


def test_a_run_compiles_its_programs_once(tmp_path, monkeypatch):
  monkeypatch.setattr(models, "build", small.Toy)

  def compiled(num_steps, name):
    config = small.config(train__num_steps=num_steps, evaluate__every=1, preview__every=1, checkpoint__every=1)
    with small.compilations() as found:
      train.train(config, tmp_path / name, arrays=small.arrays(), devices=jax.devices()[:2])
    return len(found)

  compiled(2, "first")  # also small programs that the process keeps
  assert compiled(5, "long") == compiled(2, "short") > 0
