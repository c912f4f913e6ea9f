"""What `properdocs.yml` calls while the site is built: pages that are made, pages from outside `docs/`, links, formulas."""

import os
import pathlib
import posixpath
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))

from properdocs.structure.files import File  # noqa: E402

from docs.make import fields, formulas, gallery, notebooks, reference  # noqa: E402

# Pages of the site whose source stands elsewhere in the repository.
ELSEWHERE = {
  "index.md": "docs/guide/README.md",
  "report_with_pictures.html": "docs/report.html",  # beside report.md, which becomes report.html
  **{name: name for name in ("DATA.md", "MODEL_CARD.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")},
  "site.css": "docs/make/site.css",
  **{name: name for name in ("experiments/benchmarks/RESULTS.md", "experiments/launch/README.md")},
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def on_files(files, config):
  """Adds the pages from elsewhere, and those that are made."""
  for path, source in ELSEWHERE.items():
    files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
  made = {"fields.md": fields.page(), "gallery.md": gallery.PAGE, **reference.pages(), **notebooks.pages()}
  for path, content in made.items():
    files.append(File.generated(config, path, content=content))
  cache = pathlib.Path(os.environ.get("RETREE_JAX_DOCS_CACHE", ROOT / ".cache" / "docs"))
  for path, picture in gallery.pictures(cache).items():
    files.append(File.generated(config, path, abs_src_path=str(picture)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links within the repository into links within the site; files that are no pages are named, not linked."""
  here = page.file.src_uri
  repository = posixpath.dirname(ELSEWHERE.get(here, f"docs/{here}"))
  pages = {source: path for path, source in ELSEWHERE.items()} | {"README.md": "index.md"}
  pages |= {f"experiments/notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in notebooks.FOLDER.glob("*.ipynb")}

  def site_link(match: re.Match) -> str:
    picture, text, link = match.groups()
    target, mark, anchor = link.partition("#")
    source = posixpath.normpath(posixpath.join(repository, target))
    path = pages.get(source, source.removeprefix("docs/") if source.startswith("docs/") else "")
    if path and files.get_file_from_path(path):
      return f"{picture}[{text}]({posixpath.relpath(path, posixpath.dirname(here) or '.')}{mark}{anchor})"
    if (ROOT / source).exists() and not picture:
      return text if source in text or posixpath.basename(source) in text else f"{text} (`{source}`)"
    return match[0]  # the strict build reports it

  parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
  return "".join(part if i % 2 else _LINK.sub(site_link, part) for i, part in enumerate(parts))


def on_page_content(html, page, config, files):
  """Draws the formulas."""
  return formulas.to_mathml(html)
