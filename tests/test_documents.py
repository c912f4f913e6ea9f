"""The documents: every link leads somewhere, and README.md holds the test command that .ci/run takes from it."""

import re

import pytest

from tests import small

DOCUMENTS = [path for form in ("*.md", "docs/*.md", "docs/guide/*.md", "experiments/**/*.md") for path in small.ROOT.glob(form)]


def anchors(path):
  """Anchors of a page's headings, as GitHub makes them."""
  headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(small.ROOT)))
def test_links_lead_to_files_and_headings(path):
  for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
    file, _, anchor = target.partition("#")
    page = path.parent / file if file else path
    assert page.exists(), f"{path.name} links {target}, which does not exist"
    assert not anchor or anchor in anchors(page), f"{path.name} links {target}, but the page has no such heading"


def test_readme_links_every_document():
  readme = (small.ROOT / "README.md").read_text()
  for path in [*small.ROOT.glob("*.md"), *small.ROOT.glob("docs/*.md")]:
    assert path.name == "README.md" or f"]({path.relative_to(small.ROOT)}" in readme, path.name


def test_readme_holds_one_command_that_runs_the_tests():
  pattern = r"s/^    \(python3\{0,1\} -m venv .* pytest.*\)$/\1/p"
  assert pattern in (small.ROOT / ".ci/run").read_text()
  commands = re.findall(r"^    (python3? -m venv .* pytest.*)$", (small.ROOT / "README.md").read_text(), re.MULTILINE)
  assert len(commands) == 1
