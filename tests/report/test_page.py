"""The report's page, its Markdown and its JSON, from made-up results."""

import html.parser
import re

import numpy as np

from retree_jax.data import writing
from retree_jax.report import files, page, verdicts
from tests.report.made_up import mean, result

_VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
  """Checks that tags close, and collects tags and text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.text = [], [], []
    self.feed(text)
    assert not self.open, f"unclosed: {self.open}"

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)

  def attributes(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def rendered(comparison):
  comparison["verdicts"] = verdicts.verdicts(comparison)
  return page.html(comparison)


def audited(comparison):
  """The comparison with a made-up privacy audit of photographs, whose closest pairs are pictures of these names."""
  share = {"share": 0.0, "low": 0.0, "high": 0.09, "hits": 0, "total": 40}
  distances = dict.fromkeys(("generated_to_train", "heldout_to_train", "generated_to_heldout"), [0.4, 0.5])
  space = {
    "copied": share,
    "near": share,
    "near_expected": 0.05,
    "isolated": share,
    "isolated_heldout": share,
    "median_distance": dict.fromkeys(distances, 0.45),
    "distances": distances,
    "closer_to_train": mean(0.5),
  }
  comparison["privacy"] = {
    "photographs": {
      "verdict": "clear",
      "sentence": "None.",
      "num_generated": 40,
      "num_train": 40,
      "num_heldout": 40,
      "percentile": 95,
      "spaces": {"pixels": space},
      "notes": [],
    },
    "trees": {"refused": "no trees"},
  }
  picture = np.full((64, 64, 3), 90, np.uint8)
  pair = {"generated": picture, "train": picture, "distance": 0.1, "second": 0.4, "copied": True}
  name = comparison["pictures"]["real"][0]["name"]
  comparison["pictures"]["closest"] = {"photographs": [pair | {"generated_name": name, "train_name": name}]}
  return comparison


def test_page_is_one_accessible_file():
  comparison = audited(result())
  comparison["segmenter"] = {side: {"f1": mean(0.8)} for side in ("generated", "real")}
  comparison["settings"]["segmenter"] = "abc, step 1"
  text = rendered(comparison)
  parsed = Page(text)
  images = parsed.attributes("img")
  assert len(images) == 2 * 2 * 2 + 2
  assert all(image["alt"] and image["src"].startswith("data:image/jpeg") for image in images)
  assert "<script" not in text and not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
  assert len(parsed.attributes("main")) == 1 and parsed.attributes("html") == [{"lang": "en"}]
  heads = parsed.attributes("th")
  assert {attributes.get("scope") for attributes in heads} == {"col", "row"}
  charts = parsed.attributes("svg")
  assert len(charts) == 1 + 14 + 1 and all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
  ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
  sections = [attributes["aria-labelledby"] for attributes in parsed.attributes("section")]
  assert sections == ids == ["verdicts", "pairs", "fidelity", "vessels", "privacy"]
  assert "width=device-width" in text and "prefers-color-scheme: dark" in text
  levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
  assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels[:-1], levels[1:], strict=True))


def test_page_without_pictures_or_audit_has_no_empty_section():
  comparison = result()
  comparison["pictures"] = {}
  parsed = Page(rendered(comparison))
  assert not parsed.attributes("img")
  assert [a["aria-labelledby"] for a in parsed.attributes("section")] == ["verdicts", "fidelity", "vessels"]


def test_names_are_escaped():
  name = "<b>&\"'"
  comparison = audited(result(names=(name, "a|b")))
  comparison["notes"] = [name]
  comparison["settings"]["features"]["photographs"] = name
  comparison["sets"]["real"]["title"] = name
  text = rendered(comparison)
  parsed = Page(text)
  assert "<b>" not in text and not parsed.attributes("b")
  assert f"Real photograph {name}" in {image["alt"] for image in parsed.attributes("img")}
  shown = "".join(parsed.text)
  assert (
    f"({name})" in shown and f"Features: {name}." in shown and f"{name} and {name}, distance 0.100" in " ".join(shown.split())
  )


def test_markdown_cells_stay_cells():
  comparison = result()
  comparison["settings"]["features"]["trees"] = "a|b"
  comparison["distances"]["trees"]["kernel"]["note"] = "a|b\nc"
  comparison["verdicts"] = []
  rows = [line for line in files.markdown(comparison).splitlines() if line.startswith("|")]
  assert sum("a\\|b c" in row for row in rows) == 2  # photographs and trees share the made-up distances
  # One more bar than columns: image distances 5, labels 6, vessels 9.
  assert {row.count("|") - row.count("\\|") for row in rows} == {6, 7, 10}


def test_json_is_the_result_without_pictures():
  made = {"a": float("nan"), "b": np.float32(1.5), "c": (np.int64(2), [float("inf")]), "pictures": {"x": object()}}
  assert files.to_json(made) == {"a": None, "b": 1.5, "c": [2, [None]]} == writing.json_values(files.to_json(made))


def test_every_mark_of_the_charts_has_a_colour():
  """A mark without a rule in the style sheet would be drawn black, or not at all."""
  text = rendered(audited(result()))
  style = text[text.index("<style>") : text.index("</style>")]
  coloured = {
    frozenset(re.findall(r"\.([\w-]+)", selector))
    for selectors, body in re.findall(r"([^{}]+){([^}]*)}", style)
    if "var(--" in body
    for selector in selectors.split(",")
  }
  parsed = Page(text)
  marks = [a["class"] for tag in ("polygon", "polyline", "line", "circle", "span") for a in parsed.attributes(tag)]
  used = {frozenset(classes.split()) for classes in marks}
  assert {frozenset({"generated-line"}), frozenset({"shuffled"}), frozenset({"span", "real"})} <= used <= coloured
