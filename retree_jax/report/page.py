"""The report as one HTML file: pictures inside it, no script, nothing fetched from anywhere.

It is written for a physician first: verdicts, then pictures, then tables, then what the words mean.
"""

import html as markup

import numpy as np

from retree_jax.report import plots, privacy_section
from retree_jax.report.parts import Table, histogram, image, interval, number, ranges
from retree_jax.report.style import STYLE

TITLE = "What these generated eyes are worth"
LIMITS = (
  "This report compares statistics of pictures and of vessel trees. It does not say that the "
  "pictures are fit for diagnosis, and a difference that was not found may still be there: the "
  "fewer the eyes, the larger the differences that go unseen. Distances compare only between "
  "reports with the same features, size and real set."
)
WORDS = {"good": "No problem found", "caution": "With reservations", "bad": "Problem found", "unknown": "Cannot tell"}
_SIGNS = {"good": "✓", "caution": "!", "bad": "✕", "unknown": "?"}
_READABLE = {
  "density": "vessel density",
  "length": "total length",
  "width": "mean width",
  "width_area": "area over length",
  "junctions": "forks and crossings",
  "endpoints": "free ends",
  "branching_angle": "branching angle",
  "branching_angle_median": "branching angle, median",
  "tortuosity": "tortuosity",
  "tortuosity_median": "tortuosity, median",
  "tortuosity_curvature": "curvature tortuosity",
  "fractal_dimension": "fractal dimension",
  "fractal_fit": "fit of the fractal dimension",
  "fractal_dimension_skeleton": "fractal dimension of centrelines",
  "components": "separate pieces",
  "loops": "closed loops",
}
_MEASURES = {
  "kernel": ("Kernel distance", "difference of the two sets; about 0 for sets of one kind, and not lower for fewer images"),
  "kernel_floor": ("… real against real", "the same between random halves of the real set"),
  "frechet": ("Fréchet distance", "difference of the two sets; larger for fewer images"),
  "frechet_matched": ("… at equal counts", "generated against real, drawn down to the counts of the next line"),
  "frechet_floor": ("… real against real", "the same between random halves of the real set"),
  "precision": ("Precision", "share of generated images among real ones"),
  "recall": ("Recall", "share of real images among generated ones"),
  "density": ("Density", "how closely real images surround the generated ones; about 1 for sets of one kind"),
  "coverage": ("Coverage", "share of real images that have a generated one close by"),
}


def readable(name: str) -> str:
  """A biomarker as people call it."""
  return _READABLE.get(name, name.replace("_", " "))


def subtitle(result: dict) -> str:
  """What was compared, in one sentence."""
  sets, (height, width) = result["sets"], result["settings"]["size"]
  trained = f", trained on {sets['train']['count']} eyes ({sets['train']['title']})" if "train" in sets else ""
  return (
    f"{sets['generated']['count']} generated pairs ({sets['generated']['title']}) against "
    f"{sets['real']['count']} real ones ({sets['real']['title']}){trained}; every eye's field of view "
    f"fitted to {height} × {width} pixels."
  )


def tables(result: dict) -> list[Table]:
  """All numbers of the report."""
  found = []
  for space, entries in result["distances"].items():
    lead = f"Features: {result['settings']['features'][space]}. " + entries.get("refused", "")
    rows = [
      [
        _MEASURES[name][0],
        number(e["value"]),
        interval(e),
        f"{e['num_a']} / {e['num_b']}",
        _MEASURES[name][1] + (f". {e['note']}" if e["note"] else ""),
      ]
      for name, e in ((n, entries[n]) for n in _MEASURES if n in entries)
    ]
    head = ["Measure", "Value", "95 % interval", "Images", "Meaning"]
    found.append(Table(f"Image distances: {space}", lead.strip(), head, rows))
  found.append(_vessel_table(result))
  measures, definitions = result["fidelity"]["measures"], result["fidelity"]["definitions"]
  rows = [
    [
      name,
      *(f"{number(e[s]['mean'])} ({interval(e[s])})" for s in ("generated", "real", "shuffled")),
      number(e["position"]),
      definitions[name][1],
    ]
    for name, e in measures.items()
  ]
  found.append(
    Table(
      "Labels on photographs",
      "Means over pairs with 95 % intervals; position 0 is chance, 1 is a real pair.",
      ["Measure", "Generated", "Real", "Labels of other eyes", "Position", "Definition"],
      rows,
    )
  )
  if result["segmenter"]:
    found.append(
      Table(
        "A segmenter against the labels",
        f"Segmenter: {result['settings']['segmenter']}. Means over photographs inside the field of view.",
        ["Score", "Generated", "Real"],
        [
          [
            name,
            *(
              f"{number(result['segmenter'][s][name]['mean'])} ({interval(result['segmenter'][s][name])})"
              for s in ("generated", "real")
            ),
          ]
          for name in result["segmenter"]["real"]
        ],
      )
    )
  if result["privacy"]:
    found += privacy_section.tables(result["privacy"])
  return found


def _vessel_table(result: dict) -> Table:
  part = result["vessels"]
  head = ["Measure", "Unit", "Generated", "Real", "Distance / real SD", "At equal counts", "Real against real", "KS", "p"]
  if "refused" in part:
    return Table("Vessel measures", part["refused"], head, [])
  rows = []
  for name, e in part["distances"].items():
    rows.append(
      [
        readable(name),
        part["definitions"][name][0],
        f"{number(e['mean_a'])} ± {number(e['std_a'])}",
        f"{number(e['mean_b'])} ± {number(e['std_b'])}",
        number(e["wasserstein_normalised"]),
        f"{number(e['matched']['value'])} ({interval(e['matched'])})",
        f"{number(e['floor']['value'])} ({interval(e['floor'])})",
        number(e["ks"]),
        number(e["ks_p"]),
      ]
    )
  lead = (
    "Mean ± standard deviation over trees. The distance is Wasserstein's over the standard deviation "
    "of the real trees; it is also given for samples of equal counts, beside what random halves of "
    "the real trees score. KS: largest gap between the two cumulative distributions; p is not "
    "corrected for the number of measures."
  )
  return Table("Vessel measures", lead, head, rows)


def html(result: dict) -> str:
  """The whole page, a few hundred kilobytes whatever the size of the sets."""
  parts = [_verdicts(result), _notes(result), _pairs(result), _fidelity_chart(result), _histograms(result)]
  if result["privacy"]:
    parts.append(privacy_section.section(result))
  parts.append("<h2>All numbers</h2>" + "".join(_table(t) for t in tables(result)))
  parts.append(_definitions(result))
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    'content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
    "'unsafe-inline'\">"
    '<meta name="color-scheme" content="light '
    f'dark"><title>{TITLE}</title><style>{STYLE}</style></head><body><main>'
    f'<header><h1>{TITLE}</h1><p class="lead">{_text(subtitle(result))}</p></header>'
    + "".join(parts)
    + f"<footer><p>{_text(LIMITS)}</p></footer></main></body></html>\n"
  )


def _text(text) -> str:
  return markup.escape(str(text))


def _verdicts(result: dict) -> str:
  cards = "".join(
    f'<li class="verdict {v["level"]}"><p class="level"><span class="sign" '
    f'aria-hidden="true">{_SIGNS[v["level"]]}</span>'
    f"{WORDS[v['level']]}</p><div><h3>{_text(v['question'])}</h3><p>{_text(v['answer'])}</p><p "
    f'class="basis">{_text(v["basis"])}</p></div></li>'
    for v in result["verdicts"]
  )
  return _section("verdicts", "Verdicts", f'<ul class="verdicts">{cards}</ul>')


def _notes(result: dict) -> str:
  if not result["notes"]:
    return ""
  items = "".join(f"<li>{_text(note)}</li>" for note in result["notes"])
  return f'<aside class="notes"><h3>Please note</h3><ul>{items}</ul></aside>'


def _pairs(result: dict) -> str:
  if not result["pictures"]:
    return ""
  blocks = []
  for side, title in (("real", "Real"), ("generated", "Generated")):
    cells = "".join(_eye(title, example) for example in result["pictures"][side])
    blocks.append(f'<div><h3>{title}</h3><div class="eyes">{cells}</div></div>')
  lead = (
    "<p>Drawn at random, not picked. Below each photograph the same one with its vessel label in "
    "green. This page holds real photographs: share it only where those may be shared "
    "(<code>--nopictures</code> leaves pictures and file names out).</p>"
  )
  return _section("pairs", "Pairs", lead, '<div class="sides">' + "".join(blocks) + "</div>")


def _section(name: str, title: str, *parts: str) -> str:
  return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>' + "".join(parts) + "</section>"


def _eye(side: str, example: dict) -> str:
  name = example["name"]
  drawn = plots.overlay(example["image"], example["tree"], (90, 255, 120), 0.85)
  pictures = image(example["image"], f"{side} photograph {name}")
  pictures += image(drawn, f"{side} photograph {name} with its vessel label in green")
  return f'<figure class="eye">{pictures}<figcaption>{_text(name)}</figcaption></figure>'


def _fidelity_chart(result: dict) -> str:
  entry = result["fidelity"]["measures"]["darker"]
  rows = [
    (label, css, *(entry[side][k] for k in ("mean", "low", "high")))
    for label, css, side in (
      ("Real pairs", "real", "real"),
      ("Generated pairs", "made", "generated"),
      ("Wrong labels", "null", "shuffled"),
    )
  ]
  told = "; ".join(f"{label}: {100 * value:.0f} %" for label, _, value, _, _ in rows if np.isfinite(value))
  chart = ranges(rows, 0.0, 1.0, f"Share of labelled pixels darker than their surroundings. {told}.", percent=True)
  lead = (
    "<p>Vessels are darker than the retina beside them in green light. Share of labelled pixels for "
    "which that holds, with 95 % intervals; “wrong labels” are the generated photographs with the "
    "labels of other eyes.</p>"
  )
  return _section("fidelity", "Labels on vessels", lead, chart)


def _histograms(result: dict) -> str:
  trees, definitions = result["vessels"]["trees"], result["vessels"]["definitions"]
  cells = "".join(
    f"<figure><figcaption>{_text(readable(name))}{_soft(definitions[name][0])}</figcaption>"
    + histogram([t[name] for t in trees["real"]], [t[name] for t in trees["generated"]], readable(name), definitions[name][0])
    + "</figure>"
    for name in definitions
    if name not in ("fractal_fit", "width_area")
  )
  key = (
    '<p class="key"><span class="swatch real"></span>real<span class="swatch made"></span>generated, '
    "dashed. "
    "Height is the share of trees; ticks below the axis are means; an asterisk: values far out stand "
    "in the outermost bars.</p>"
  )
  return _section("vessels", "Vessel measures", key, f'<div class="charts">{cells}</div>')


def _soft(unit: str) -> str:
  return f" <small>{_text(unit)}</small>" if unit else ""


def _table(table: Table) -> str:
  lead = f"<p>{_text(table.lead)}</p>" if table.lead else ""
  if not table.rows:
    return f"<h3>{_text(table.title)}</h3>{lead}"
  head = "".join(f'<th scope="col">{_text(h)}</th>' for h in table.head)
  rows = "".join(
    '<tr><th scope="row">' + _text(r[0]) + "</th>" + "".join(f"<td>{_text(c)}</td>" for c in r[1:]) + "</tr>"
    for r in table.rows
  )
  return (
    f'<h3>{_text(table.title)}</h3>{lead}<div class="scroll" role="region" tabindex="0" '
    f'aria-label="{_text(table.title)}">'
    f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
  )


def _definitions(result: dict) -> str:
  items = []
  for name, (unit, text) in result["vessels"]["definitions"].items():
    term = f"{readable(name)} ({unit})" if unit else readable(name)
    items.append(f"<dt>{_text(term)}</dt><dd>{_text(text)}</dd>")
  return "<details><summary>How the vessel measures are defined</summary><dl>" + "".join(items) + "</dl></details>"
