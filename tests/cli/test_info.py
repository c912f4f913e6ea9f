"""`retree-jax info` says what the commands themselves use, and MODEL_CARD.md says the same."""

import json
import re
import shutil

import jax
import pytest

import retree_jax
from retree_jax import checkpoint
from retree_jax.cli import config_files, info
from tests import small


@pytest.fixture(scope="module")
def facts():
  return info.collect()


def test_versions_devices_and_configs(facts):
  assert facts["version"] == retree_jax.__version__ and facts["jax"] == jax.__version__
  assert sum(d["count"] for d in facts["devices"]) == jax.device_count()
  assert list(facts["configs"]) == config_files.names() and "diffusion" in facts["configs"]["segmentation"]


def test_every_shipped_model_has_a_card_of_its_own_weights(facts):
  assert list(facts["models"]) == checkpoint.shipped_names()
  for name, model in facts["models"].items():
    assert model["data"] and model["licence"] and model["scores"], f"{name} has no card of these weights"
    # The sets that the card names are those that the checkpoint's config names, and no others.
    sets = set(re.findall(r"folder:(\w+)", model["source"]))
    sets = {name.removesuffix("_native") for name in sets}
    assert sets == {s for s in ("CHASE_DB1", "HRF", "DRIVE", "STARE", "FIVES") if s in model["data"]}
    for score in model["scores"]:
      assert {"measure", "on", "value", "command"} <= set(score), score
      assert score.get("low", score["value"]) <= score["value"] <= score.get("high", score["value"])


def test_the_model_card_holds_the_same_scores_and_sizes(facts):
  card = (small.ROOT / "MODEL_CARD.md").read_text()
  assert info.markdown(facts["models"]) in card, "replace the table of MODEL_CARD.md by `retree-jax info --markdown`"
  for name, model in facts["models"].items():
    (row,) = re.findall(rf"^\| `{name}` \| .* \| ([\d.]+ M) \|$", card, re.MULTILINE)
    assert row == f"{model['parameters'] / 1e6:.1f} M"


def test_a_card_of_other_weights_counts_for_nothing(tmp_path):
  weights = tmp_path / "tree"
  shutil.copytree(config_files.folder().parent / "retree_jax" / "weights" / "tree", weights)
  assert info.model(weights)["scores"]
  card = json.loads((weights / info.CARD).read_text())
  (weights / info.CARD).write_text(json.dumps(card | {"checkpoint": "0" * 16}))
  unknown = info.model(weights)
  assert unknown["scores"] == [] and unknown["data"] is None and unknown["parameters"] > 0


def test_the_command_prints_text_json_and_markdown(facts, monkeypatch, capsys):
  monkeypatch.setattr(info, "collect", lambda: facts)
  printed = {}
  for flag in ("--nojson", "--json", "--markdown"):
    monkeypatch.setattr("sys.argv", ["retree-jax info", flag])
    info.main()
    printed[flag] = capsys.readouterr().out
  assert json.loads(printed["--json"]) == facts
  assert printed["--markdown"] == info.markdown(facts["models"])
  shown = printed["--nojson"]
  assert facts["version"] in shown and "  tree: default, tiny, cpu, paper\n" in shown
  for model in facts["models"].values():
    assert model["checkpoint"] in shown and all(f"{s['value']:g}" in shown for s in model["scores"])
