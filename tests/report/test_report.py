"""The report's page, tables, charts and verdicts, from made-up results with known answers."""

import html.parser
import re

import numpy as np
import pytest

from retree_jax.metrics import fidelity, vessels
from retree_jax.report import document, page, parts

_VOID = {"meta", "img", "line", "circle", "polygon", "polyline", "br"}


class _Page(html.parser.HTMLParser):
  """Checks that tags close, and collects what the tests ask for."""

  def __init__(self, text):
    super().__init__()
    self.open, self.images, self.tags, self.cells = [], [], [], []
    self.feed(text)
    assert not self.open, f"unclosed: {self.open}"

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag == "img":
      self.images.append(dict(attributes))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def _measurement(value, low, high, count=40):
  return {"value": value, "low": low, "high": high, "num_a": count, "num_b": count, "note": ""}


def _mean(value, count=40):
  return {"mean": value, "std": 0.02, "low": value - 0.01, "high": value + 0.01, "count": count}


def _result(count=40, p=0.6, precision=0.9, ks_p=0.8, darker=0.95, position=0.97, shift=(0, 0), names=("one", "two")):
  """A made-up comparison of `count` generated with `count` real eyes."""
  rng = np.random.default_rng(0)
  trees = {
    side: [{"name": names[0], **{n: float(rng.normal(5, 1)) for n in vessels.BIOMARKERS}} for _ in range(count)]
    for side in ("generated", "real")
  }
  entry = {
    "wasserstein": 0.1,
    "wasserstein_normalised": 0.1,
    "ks": 0.2,
    "ks_p": ks_p,
    "mean_a": 5.0,
    "std_a": 1.0,
    "mean_b": 5.1,
    "std_b": 1.0,
    "matched": {"value": 0.2, "low": 0.1, "high": 0.3},
    "floor": {"value": 0.2, "low": 0.1, "high": 0.3},
    "count": count // 2,
  }
  measures = {
    name: {"generated": _mean(darker, count), "real": _mean(0.97, count), "shuffled": _mean(0.45, count), "position": position}
    for name in fidelity.MEASURES
  }
  picture = np.full((64, 64, 3), 90, np.uint8)
  shown = [{"name": name, "image": picture, "tree": picture[..., :1], "fov": picture[..., :1]} for name in names]
  distances = {
    "frechet": _measurement(2.0, 1.0, 3.0, count),
    "kernel": _measurement(0.1, -0.1, 0.3, count),
    "kernel_floor": _measurement(0.0, -0.2, 0.2, count // 2),
    "precision": _measurement(precision, 0, 1, count),
    "coverage": _measurement(precision, 0, 1, count),
  }
  test = {"energy": 0.1, "p": p, "count_a": count, "count_b": count}
  return {
    "format": document.FORMAT,
    "settings": {
      "size": [256, 256],
      "features": {"photographs": "scattering", "trees": "scattering"},
      "num": None,
      "seed": 0,
      "segmenter": None,
    },
    "sets": {"generated": {"title": "made", "count": count}, "real": {"title": "real", "count": count}},
    "notes": ["Take care."],
    "distances": {"photographs": distances, "trees": distances},
    "tests": {"photographs": test, "trees": test},
    "vessels": {
      "definitions": {n: list(d) for n, d in vessels.BIOMARKERS.items()},
      "trees": trees,
      "distances": {name: dict(entry) for name in vessels.BIOMARKERS},
    },
    "fidelity": {
      "definitions": {n: list(d) for n, d in fidelity.MEASURES.items()},
      "measures": measures,
      "shift": {"generated": list(shift), "real": [0, 0]},
      "pairs": {"generated": [], "real": []},
    },
    "segmenter": None,
    "privacy": None,
    "pictures": {"generated": shown, "real": shown},
  }


def _told(**changes):
  return {verdict["id"]: verdict for verdict in document.verdicts(_result(**changes))}


def _page(result):
  result["verdicts"] = document.verdicts(result)
  return page.html(result)


def test_page_is_one_accessible_file():
  text = _page(_result())
  page = _Page(text)
  assert len(page.images) == 8 and all(image["alt"] and image["src"].startswith("data:image/jpeg") for image in page.images)
  assert "<script" not in text and not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
  assert sum(tag == "main" for tag, _ in page.tags) == 1 and ("html", {"lang": "en"}) in page.tags
  assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
  assert all(a.get("aria-label") for tag, a in page.tags if tag == "svg")
  ids = [a["id"] for _, a in page.tags if "id" in a]
  assert len(ids) == len(set(ids))
  assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
  assert "width=device-width" in text and "prefers-color-scheme:dark" in text
  assert text.index("Verdicts") < text.index("Pairs") < text.index("All numbers")


def test_names_are_escaped():
  result = _result(names=("<b>&\"'", "a|b"))
  text = _page(result)
  _Page(text)
  assert "<b>&" not in text and "&lt;b&gt;&amp;" in text
  result["settings"]["features"]["trees"] = "a|b"
  result["distances"]["trees"]["kernel"]["note"] = "a|b"
  rows = [line for line in document.markdown(result).splitlines() if line.startswith("|")]
  assert any("a\\|b" in row for row in rows) and {r.count("|") - r.count("\\|") for r in rows} == {6, 7, 10}


def test_verdicts_follow_the_numbers():
  assert {v["level"] for name, v in _told().items() if name != "privacy"} == {"good"}
  assert _told(p=0.01)["photographs"]["level"] == "caution"
  assert _told(p=0.01, precision=0.2)["photographs"]["level"] == "bad"
  assert _told(ks_p=1e-6)["vessels"]["level"] == "bad"
  assert _told(position=0.7, darker=0.8)["labels"]["level"] == "caution"
  assert _told(position=0.1, darker=0.5)["labels"]["level"] == "bad"
  moved = _told(shift=(0, -3))["labels"]
  assert moved["level"] == "caution" and "3 px left" in moved["answer"]
  few = _told(count=6, p=0.9)
  assert few["photographs"]["level"] == few["vessels"]["level"] == "unknown"


def test_no_verdict_claims_sameness_from_few_eyes():
  for name in ("photographs", "vessels"):
    answer = _told(count=20)[name]["answer"]
    assert "No difference was found" in answer and "only large differences" in answer
  assert "No difference was found" in _told(count=60)["vessels"]["answer"]
  assert all(str(60) in v["basis"] for name, v in _told(count=60).items() if name != "privacy")


def test_holm():
  """p-values 0.001, 0.01, 0.02, 0.2 of four: 0.05/4, 0.05/3, 0.05/2 let three pass; with 0.03 the third stops it."""
  result = _result()
  part = result["vessels"]
  part["distances"] = {
    n: dict(part["distances"][n], ks_p=p)
    for n, p in zip(("density", "length", "width", "loops"), (0.02, 0.001, 0.2, 0.01), strict=True)
  }
  assert document.differing(result) == (["density", "length", "loops"], ["density", "length", "width", "loops"])
  part["distances"]["density"]["ks_p"] = 0.03
  assert document.differing(result)[0] == ["length", "loops"]


def test_segmenter_verdicts():
  def level(own, real):
    result = _result()
    result["segmenter"] = {"generated": {"f1": _mean(own)}, "real": {"f1": _mean(real)}}
    result["settings"]["segmenter"] = "abc, step 1"
    found = {v["id"]: v for v in document.verdicts(result)}["segmenter"]
    _Page(_page(result))
    return found["level"]

  assert [level(*pair) for pair in ((0.78, 0.8), (0.7, 0.8), (0.5, 0.8), (0.9, 0.8), (0.3, 0.3))] == [
    "good",
    "caution",
    "bad",
    "caution",
    "unknown",
  ]


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "0"),
    (1.23456, "1.23"),
    (-0.5, "−0.500"),
    (1234.5, "1234"),
    (0.000774, "0.000774"),
    (3e-9, "3.00e-09"),
    (float("nan"), "–"),
    (None, "–"),
    (0.9999, "1.00"),
  ],
)
def test_numbers(value, text):
  assert parts.number(value) == text


def test_histogram_draws_shares():
  """Two samples in two bins: bars and outline have the heights of the shares."""
  svg = parts.histogram([0, 0, 0, 1], [1, 1, float("nan")], "thing", "px", bins=2)
  points = [
    [tuple(map(float, p.split(","))) for p in re.search(f'{c}" points="([^"]*)"', svg)[1].split()]
    for c in ("real-fill", "made-line")
  ]
  heights = [[92 - line[i][1] for i in (1, 3)] for line in points]
  assert heights[0] == pytest.approx([63, 21], abs=0.1) and heights[1] == pytest.approx([0, 84], abs=0.1)
  assert "real mean 0.250 over 4 eyes, generated mean 1.00 over 2 eyes" in svg


def test_histogram_of_odd_samples():
  assert "nothing to measure" in parts.histogram([], [None], "thing", "")
  for values in ([2.0], [1.0] * 5, [*np.linspace(1, 2, 40), 1e6]):
    svg = parts.histogram(values, [], "thing", "px")
    assert "nan" not in svg and svg.count("<svg") == 1
  assert ">*<" in svg and "1.00e+06<" not in svg  # the far value stands in the last bar, and the chart says so
  # Copies are the far values of a privacy audit: there nothing may be hidden.
  svg = parts.histogram(values, [], "thing", "px", whole=True)
  assert ">*<" not in svg and "1.00e+06<" in svg


def test_ranges_without_value():
  nan = float("nan")
  svg = parts.ranges([("one", "real", nan, 0, 1), ("two", "made", 0.5, nan, nan)], 0, 1, "told")
  assert svg.count("<circle") == 1 and "span" not in svg and "nan" not in svg


def test_json_holds_plain_values():
  result = {"a": float("nan"), "b": np.float32(1.5), "c": (np.int64(2), [float("inf")]), "pictures": {"x": object()}}
  assert document.to_json(result) == {"a": None, "b": 1.5, "c": [2, [None]]}
