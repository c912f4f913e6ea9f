"""The Python files on docs/extending.md are written to disk: they add a network, a sampler and a sixth stage, which trains."""

import json
import os
import re

import pytest

from retree_jax import models, tasks
from tests import small

PAGE = small.ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  """A folder with the page's Python files."""
  folder = tmp_path_factory.mktemp("project")
  files = dict(re.findall(r"^`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
  assert set(files) == {"dilated.py", "euler.py", "fov_stage.py", "fov.py"}
  for name, text in files.items():
    (folder / name).write_text(text)
  return folder


def start(project, *arguments, **kw):
  """Starts Python with the project on its path."""
  return small.start(*arguments, PYTHONPATH=f"{project}{os.pathsep}{small.ROOT}", **kw)


def test_a_stage_of_ones_own_trains_resumes_evaluates_and_loads(project):
  config, run = str(project / "fov.py"), project / "run"
  flags = ("--config", config, f"--workdir={run}", "--config.log.tensorboard=False")
  small.finish(start(project, "-m", "retree_jax", "train", *flags, "--config.train.num_steps=50"))
  # The second half on another number of devices.
  text = small.finish(start(project, "-m", "retree_jax", "train", *flags, devices=4))
  assert "Resumed from step 50" in text
  losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert {50, 100} <= {line["step"] for line in losses if "heldout_iou" in line}
  small.finish(start(project, "-m", "retree_jax.main", *flags, "--mode=evaluate"))
  scores = json.loads((run / "evaluation.json").read_text())["scores"]
  assert scores["heldout_iou"] > 0.9
  script = f"""
import fov_stage, numpy as np
from retree_jax import checkpoint
from retree_jax.data import phantom
loaded = checkpoint.load({str(run)!r}, stage="fov")
eye = phantom.eye(8, (64, 64))
found = np.asarray(loaded.apply(loaded.params, eye["image"][None] / 127.5 - 1))[0] > 0
print("IOU", np.sum(found & (eye["fov"] > 0)) / np.sum(found | (eye["fov"] > 0)))
"""
  assert float(small.finish(start(project, "-c", script)).split("IOU")[-1]) > 0.9


def test_a_sampler_of_ones_own_is_what_it_says_and_a_config_takes_it(project):
  script = f"""
import sys
sys.path.insert(0, {str(small.ROOT)!r})
import jax, jax.numpy as jnp, numpy as np
from retree_jax.config import validate
from retree_jax.diffusion import samplers, schedules
from tests import small
config = small.config(sampler__name="euler")
try:
  validate.check(config)
  sys.exit("a sampler that nobody registered was taken")
except ValueError as error:
  assert "sampler.name='euler' is unknown" in str(error)
import euler
validate.check(config)
grid = samplers.time_grid(schedules.make("cosine", 100), 12)
x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
predict = lambda x, t: jnp.tanh(x) * (1 - t / 200)[:, None, None, None]
ours = samplers.sample("euler", predict, x, grid, clip="static")
np.testing.assert_allclose(ours, samplers.sample("ddim", predict, x, grid, clip="static", eta=0.0), atol=1e-5)
"""
  small.finish(start(project, "-c", script))


def test_built_in_names_are_not_replaced():
  with pytest.raises(ValueError, match="the stage 'tree' is built in"):
    tasks.register("tree", object)
  with pytest.raises(ValueError, match="network 'denoiser' is built in"):
    models.register("denoiser", object)
