"""The rooms of the package: imports run one way and in no circle, the root holds what it should, files stay small."""

import ast
import pathlib
import re

import pytest

from tests import small

PACKAGE = small.ROOT / "retree_jax"

# A room may import the rooms above it in this list, never those below it.
ROOMS = (
  "keys",
  "state",
  "losses",
  "models",
  "sharding",
  "diffusion",
  "metrics",
  "data",
  "config",
  "checkpoint",
  "inference",
  "tasks",
  "report",
  "train",
  "page",  # above inference and report, which it shows; no command but `demo` needs it
  "cli",
  *("main", "generate", "evaluate", "convert", "demo"),
  "__main__",
)
# Rooms that may use only some modules of another.
ONLY = {
  ("data", "metrics"): {"metrics.skeleton", "metrics.masks", "metrics.vessels"},  # of which attributes are some
  ("metrics", "models"): {"models.pretrained", "models.scaling"},
}
# Commands read their flags with these before they import anything else.
FRONT = {"cli.errors", "cli.cpu", "cli.config_files"}
ROOT_FILES = {"__init__.py", "py.typed", *(f"{name}.py" for name in ROOMS)}
FOLDERS = {"cli", "config", "data", "diffusion", "inference", "metrics", "models", "page", "report", "tasks", "weights"}


def modules(root: pathlib.Path) -> dict[str, ast.Module]:
  """Syntax trees of a package's modules by their names within it; a package is called by its folder, the root ""."""
  found = {}
  for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
  return found


def imports(tree: ast.Module, known) -> set[str]:
  """Modules of the package that a module imports, those that it imports inside functions included."""
  found = set()
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, "relative imports hide the room: write from retree_jax.ROOM import ..."
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "retree_jax":
        inside = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
        found.add(next((m for m in inside if m in known), ""))
  return found - {""}


def graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
  return {name: imports(tree, trees) - {name} for name, tree in trees.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
  """Some modules that import each other in a circle; [] if there are none."""
  state: dict[str, str] = {}

  def visit(name, path):
    state[name] = "open"
    for other in sorted(edges[name]):
      if state.get(other) == "open":
        return [*path[path.index(other) :], other]
      if other not in state and (found := visit(other, [*path, other])):
        return found
    state[name] = "closed"
    return []

  return next((c for name in edges if name not in state and (c := visit(name, [name]))), [])


def wrong_way(edges: dict[str, set[str]]) -> set[tuple[str, str]]:
  """Imports that go against the order of the rooms."""
  found = set()
  for name, others in edges.items():
    room = name.partition(".")[0]
    for other in others:
      target = other.partition(".")[0]
      allowed = ONLY.get((room, target))
      if room == target or not name or (other in FRONT and room in ROOMS[ROOMS.index("cli") :]):
        continue
      if ROOMS.index(target) > ROOMS.index(room) or (allowed and not any(f"{other}.".startswith(f"{a}.") for a in allowed)):
        found.add((name, other))
  return found


@pytest.fixture(scope="module")
def edges():
  return graph(modules(PACKAGE))


def test_imports_run_one_way(edges):
  assert wrong_way(edges) == set()


def test_no_circle(edges):
  assert circle(edges) == []


def test_the_checks_see_what_they_are_to_see():
  """On drawn packages: an import inside a function, a circle of three, a room that may not know another."""
  sources = {
    "keys": "",
    "data.a": "def f():\n  from retree_jax.data import b",
    "data.b": "import retree_jax.data.c",
    "data.c": "from retree_jax.data.a import f",
    "metrics.images": "from retree_jax.models.layers import x",
    "models.layers": "from retree_jax import keys",
    "main": "from retree_jax.cli import errors",
    "cli.errors": "",
  }
  drawn = graph({name: ast.parse(text) for name, text in sources.items()})
  assert drawn["data.a"] == {"data.b"} and drawn["models.layers"] == {"keys"}
  assert circle(drawn) == ["data.a", "data.b", "data.c", "data.a"]
  assert wrong_way(drawn) == {("metrics.images", "models.layers")}
  assert wrong_way({"data.a": {"train"}, "train": set()}) == {("data.a", "train")}


def test_the_root_holds_only_what_a_person_types_or_imports():
  files = {p.name for p in PACKAGE.iterdir() if p.is_file()}
  folders = {p.name for p in PACKAGE.iterdir() if p.is_dir()} - {"__pycache__"}
  assert files <= ROOT_FILES, f"give {sorted(files - ROOT_FILES)} a room"
  assert folders == FOLDERS


def test_no_file_is_over_400_lines():
  roots = ("retree_jax", "configs", "experiments", "tests")
  lengths = {p: len(p.read_text().splitlines()) for r in roots for p in (small.ROOT / r).rglob("*.py")}
  assert len(lengths) > 100
  assert {str(p.relative_to(small.ROOT)): n for p, n in lengths.items() if n > 400} == {}


def packages(nodes) -> set[str]:
  """Top-level packages that import statements among the nodes name."""
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found.add(node.module.partition(".")[0])
  return found


def test_only_models_know_flax_and_the_default_path_neither_tensorflow_nor_pytorch():
  seen = set()
  for name, tree in modules(PACKAGE).items():
    everywhere = packages(ast.walk(tree))
    seen |= everywhere
    assert name.partition(".")[0] == "models" or "flax" not in everywhere, f"{name} imports Flax"
    assert not {"tensorflow", "torch"} & packages(tree.body), f"{name} imports TensorFlow or PyTorch when it is imported"
  assert {"flax", "torch", "jax"} <= seen


def test_the_map_in_contributing_has_the_same_order():
  rows = re.findall(r"^\| (`.*?) \|", (small.ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
  shown = [name.removesuffix(".py").strip("/") for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
  commands = ("main", "generate", "evaluate", "convert", "demo")
  assert shown == ["__main__", *commands, *(room for room in reversed(ROOMS) if room not in ("__main__", *commands))]
