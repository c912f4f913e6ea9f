"""The log of a run: NaN is null, a resumed run drops the lines that it repeats."""

import json

import numpy as np
from PIL import Image

from retree_jax.report.metric_logging import MetricLogger


def lines(folder):
  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_pictures_and_resuming(tmp_path, capsys):
  logger = MetricLogger(tmp_path, tensorboard=False)
  logger.scalars(10, {"loss": np.float32(0.5), "score": float("nan")})
  logger.scalars(20, {"loss": 0.25})
  logger.picture(20, "trees", np.full((4, 6, 3), 7, np.uint8))
  logger.close()
  assert lines(tmp_path) == [{"step": 10, "loss": 0.5, "score": None}, {"step": 20, "loss": 0.25}]
  assert "step 10: loss 0.5, score nan" in capsys.readouterr().err
  assert (np.asarray(Image.open(tmp_path / "previews/trees_0000020.png")) == 7).all()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2')  # killed while writing
  MetricLogger(tmp_path, start_step=10, tensorboard=False).close()
  assert [line["step"] for line in lines(tmp_path)] == [10]
