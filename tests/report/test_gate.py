"""evaluate --gate: bounds follow from the numbers of the report, nothing unmeasured passes, and the exit codes tell."""

import json
import math

import numpy as np
import pytest

from retree_jax.data import phantom, writing
from retree_jax.metrics import privacy
from retree_jax.report import gate, verdicts
from tests import small
from tests.report.made_up import mean, result

SIDE, COUNT = 64, 8


def audit(hits=0, near=(0.05, 0.0), num_heldout=40):
  share, low = near
  space = {"near": {"share": share, "low": low, "high": 1.0}}
  return {"copies": {"hits": hits, "total": 40}, "num_heldout": num_heldout, "spaces": {"pixels": space}}


def checked(text, **changes):
  """{name: entry} of a made-up result; keywords change its privacy part or go to `made_up.result`."""
  parts = {name: changes.pop(name) for name in ("privacy", "segmenter") if name in changes}
  comparison = result(**changes) | {"privacy": {"photographs": audit(), "trees": audit()}} | parts
  return {entry["name"]: entry for entry in gate.check(comparison, gate.parse([text]))}


def test_grammar():
  defaults = {"copies": 0, "near": 0.0, "heldout": 20, "label_fit": 0.9, "label_shift": 1}
  assert gate.parse(["default"]) == defaults
  assert gate.parse(["label_f1", "copies = 3"]) == {"copies": 3, "label_f1": 0.05}
  # A written bound wins over a default wherever it stands, and only what is named is checked.
  assert gate.parse(["heldout=8,default"]) == gate.parse(["default", "heldout=8"]) == defaults | {"heldout": 8}
  assert gate.parse([]) == {}


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("copys=0", "'copys=0' is not a bound: write default, or NAME=BOUND with one of copies, near, heldout, label_fit,"),
    ("", "'' is not a bound"),
    ("default=1", "'default=1' is not a bound"),
    ("copies=0.5", "copies=0.5 cannot be: give a whole number of at least 0, e.g. copies=0"),
    ("copies=-1", "copies=-1 cannot be"),
    ("label_fit=1.5", "label_fit=1.5 cannot be: give a number from 0 to 1, e.g. label_fit=0.9"),
    ("label_f1=nan", "label_f1=nan cannot be"),
    ("heldout=inf", "heldout=inf cannot be"),
    ("near=", "near= cannot be"),
    ("label_shift=4", "label_shift=4 cannot be: give a whole number from 0 to 3"),  # the search ends at 4: it would never fail
    ("copies=1,copies=2", "gives copies two bounds, 1 and 2: leave one out"),
  ],
)
def test_what_cannot_be_is_refused(text, sentence):
  with pytest.raises(ValueError) as error:
    gate.parse([text])
  assert sentence in str(error.value)


def test_good_numbers_pass():
  assert all(entry["passed"] for entry in checked("default").values())


@pytest.mark.parametrize(
  ("text", "changes", "value", "passed"),
  [
    ("copies", {"privacy": {"photographs": audit(1), "trees": audit(3)}}, 3, False),
    ("copies=3", {"privacy": {"photographs": audit(1), "trees": audit(3)}}, 3, True),
    ("heldout", {"privacy": {"photographs": audit(num_heldout=19)}}, 19, False),
    ("heldout=19", {"privacy": {"photographs": audit(num_heldout=19)}}, 19, True),
    ("label_fit", {"position": 0.89}, 0.89, False),
    ("label_fit=0.85", {"position": 0.89}, 0.89, True),
    ("label_shift", {"shift": (0, -2)}, 2, False),
    ("label_shift", {"shift": (1, -1)}, 1, True),
    ("label_f1", {"segmenter": {"generated": {"f1": mean(0.7)}, "real": {"f1": mean(0.8)}}}, 0.1, False),
    ("label_f1=0.2", {"segmenter": {"generated": {"f1": mean(0.7)}, "real": {"f1": mean(0.8)}}}, 0.1, True),
    ("label_f1=0", {"segmenter": {"generated": {"f1": mean(0.9)}, "real": {"f1": mean(0.8)}}}, -0.1, True),
  ],
)
def test_bounds(text, changes, value, passed):
  (entry,) = checked(text, **changes).values()
  assert entry["value"] == pytest.approx(value) and entry["passed"] == passed
  assert f"--gate {entry['name']}={entry['bound']:g} asks for at " in entry["sentence"]


def test_nearness_agrees_with_the_verdict_of_the_audit():
  """The default bound is where the audit says "suspicious": two of 40 held-out eyes give an interval that ends at 16.5 %."""
  limit = privacy.explained(40)
  assert limit == pytest.approx(0.165, abs=5e-4)
  below, above = ({"photographs": audit(near=(0.4, limit + step))} for step in (-0.01, 0.01))
  assert checked("near", privacy=below)["near"]["passed"] and not checked("near", privacy=above)["near"]["passed"]
  assert checked("near=0.02", privacy=above)["near"]["passed"]


@pytest.mark.parametrize(
  ("text", "changes", "advice"),
  [
    ("copies", {"privacy": None}, "with --train"),
    ("heldout", {"privacy": {"photographs": {"refused": "too few: add images"}}}, "too few: add images"),
    ("label_f1", {}, "with --segmenter"),
    ("label_f1", {"segmenter": {"generated": {"f1": mean(0.3)}, "real": {"f1": mean(0.3)}}}, "fails on real eyes"),
    ("label_fit", {"count": 2}, "at least 3 of each are needed"),
    ("label_shift", {"count": 2}, "at least 3 of each are needed"),
  ],
)
def test_what_was_not_measured_does_not_pass(text, changes, advice):
  (entry,) = checked(text, **changes).values()
  assert entry["value"] is None and not entry["passed"] and "could not be checked" in entry["sentence"]
  assert advice in entry["sentence"]


def test_a_default_bound_is_where_the_report_finds_no_problem():
  """Just inside it the verdict is good, just outside it is not."""
  for changes, name in (({"position": 0.9}, "label_fit"), ({"shift": (1, 1)}, "label_shift")):
    assert checked(name, **changes)[name]["passed"]
    assert {v["id"]: v["level"] for v in verdicts.verdicts(result(**changes))}["labels"] == "good"
  for changes, name in (({"position": 0.899}, "label_fit"), ({"shift": (2, 0)}, "label_shift")):
    assert not checked(name, **changes)[name]["passed"]
    assert {v["id"]: v["level"] for v in verdicts.verdicts(result(**changes))}["labels"] == "caution"
  assert not math.isnan(checked("label_fit")["label_fit"]["value"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Folders of phantom eyes: real, train, good (new eyes), bad (two training eyes mirrored, the other labels of other eyes)."""
  root = tmp_path_factory.mktemp("gate")

  def eyes(start):
    return [phantom.eye(start + k, (SIDE, SIDE), view="disc", binary=True) for k in range(COUNT)]

  made = {"real": eyes(0), "train": eyes(100), "good": eyes(200)}
  spoiled = [good | {"tree": other["tree"]} for good, other in zip(made["good"], made["real"], strict=True)]
  mirrored = [{field: np.ascontiguousarray(eye[field][:, ::-1]) for field in ("image", "tree", "fov")} for eye in made["train"]]
  made["bad"] = mirrored[:2] + spoiled[2:]
  for name, part in made.items():
    for k, eye in enumerate(part):
      for kind, field in (("images", "image"), ("masks", "tree"), ("fov", "fov")):
        writing.write_png(root / name / kind / f"{k}.png", eye[field])
  return root


def test_exit_codes(folders):
  """Real processes: 0 within the bounds, 1 with one sentence for each violated bound and a whole report, 2 before any work."""

  def start(generated, *arguments):
    command = ["-m", "retree_jax", "evaluate", f"--generated={folders / generated}", f"--real={folders / 'real'}"]
    command += [f"--train={folders / 'train'}", f"--size={SIDE}", "--nopictures", f"--out={folders / 'out' / generated}"]
    return small.start(*command, *arguments)

  # Phantoms of 64 pixels are nearer to each other than photographs are, so `near` is not tested here.
  running = {
    "good": start("good", "--gate=copies,label_fit", "--gate=heldout=8,label_shift"),
    "bad": start("bad", "--gate", "copies", "--gate=label_fit=0.5,label_f1"),
    "nowhere": start("nowhere", "--gate=copies=many"),
  }
  said = {name: process.communicate(timeout=600)[0] for name, process in running.items()}
  assert {name: process.returncode for name, process in running.items()} == {"good": 0, "bad": 1, "nowhere": 2}, said
  assert "gate:" not in said["good"] and "Traceback" not in "".join(said.values())

  found = [line for line in said["bad"].splitlines() if line.startswith("gate: ")]
  assert len(found) == 3
  assert "2 of 8 generated photographs and 2 of 8 generated vessel trees are copies" in found[0]
  assert "--gate label_fit=0.5 asks for at least 0.5" in found[1] and "with --segmenter" in found[2]
  for name in ("bad", "good"):
    assert sorted(p.name for p in (folders / "out" / name).iterdir()) == ["report.html", "report.json", "report.md"]
  stored = json.loads((folders / "out/bad/report.json").read_text())["gate"]
  assert [entry["passed"] for entry in stored] == [False] * 3 and stored[0]["value"] == 2 and stored[2]["value"] is None
  # The bounds are read before the sets are opened: of two errors this one is reported.
  assert "error: --gate copies=many cannot be: give a whole number" in said["nowhere"]
  assert not (folders / "out/nowhere").exists()
