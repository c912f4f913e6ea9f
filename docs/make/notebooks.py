"""The pages of the notebooks: their text, code and stored outputs."""

import base64
import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
_PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}  # in the order of preference


def pages() -> dict[str, str | bytes]:
  """{path in the site: Markdown of a page, or a picture of one}."""
  found: dict[str, str | bytes] = {}
  for path in sorted(FOLDER.glob("*.ipynb")):
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
      source = "".join(cell["source"])
      parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
      for output in cell.get("outputs", ()):
        text, kind, picture = _shown(output)
        if picture:
          name = f"{path.stem}_{len(found)}.{_PICTURES[kind]}"
          found[f"notebooks/{name}"] = picture
          text = f"![What the cell above draws]({name})"
        parts.append(text)
    parts.insert(1, f"*The notebook is `experiments/notebooks/{path.name}` in the repository.*")
    found[f"notebooks/{path.stem}.md"] = "\n\n".join(parts) + "\n"
  return found


def _shown(output: dict) -> tuple[str, str, bytes | None]:
  """(Markdown, MIME type, content of a picture) of an output of a cell."""
  data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
  for kind in _PICTURES:
    if kind in data:
      return "", kind, data[kind].encode() if kind.endswith("xml") else base64.b64decode(data[kind])
  if "text/markdown" in data:
    return data["text/markdown"], "text/markdown", None
  text = "".join(output.get("text", "")) or data.get("text/plain", "")
  return f"```{{ .text .output }}\n{text.rstrip()}\n```", "text/plain", None
