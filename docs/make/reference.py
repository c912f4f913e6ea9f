"""The API pages: one for each room of the package, made from docstrings by mkdocstrings."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "retree_jax"
# Rooms in the order of a reader's interest; the modules of the package's root come first, on a page of their own.
ROOMS = ("diffusion", "models", "tasks", "inference", "metrics", "data", "report", "config", "cli", "page")
_ROOT_PAGE = "package"


def modules(room: str) -> list[str]:
  """Dotted names of a room's modules, packages first."""
  if room == _ROOT_PAGE:
    paths = sorted(path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
  else:
    paths = sorted((PACKAGE / room).rglob("*.py"), key=lambda path: (path.parent, path.stem != "__init__", path.stem))
  names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
  return [name for name in names if not name.endswith("__main__")]


def pages() -> dict[str, str]:
  """{path in the site: Markdown} of all API pages."""
  found = {}
  for room in (_ROOT_PAGE, *ROOMS):
    title = "The package" if room == _ROOT_PAGE else f"`retree_jax.{room}`"
    lines = [f"# {title}", ""]
    for name in modules(room):
      lines += [f"::: {name}", ""]
    found[f"api/{room}.md"] = "\n".join(lines)
  return found
