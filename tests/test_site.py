"""What the documentation site is made of: every config field is explained, every module has its place, every page is listed.

`.ci/run` builds the site itself, where a broken link or a missing page is an error."""

import re

import pytest

from docs.make import fields, notebooks, reference
from retree_jax.cli import config_files
from tests import small


@pytest.mark.parametrize("stage", config_files.names())
def test_every_config_field_is_explained(stage):
  for variant in config_files.variants(stage):
    config = fields.config(stage, variant)
    assert set(fields.leaves(config)) - fields.described(stage, config) == set()


def test_the_page_of_fields_names_each_of_them_with_its_default():
  page = fields.page()
  for name, value in fields.leaves(fields.config("tree")).items():
    section = name.partition(".")[0]
    assert f"`{name}`" in page or f"`{section}`" in page, name
    assert name != "train.num_steps" or re.search(rf"`train.num_steps` \| .*`{value}`", page)


def test_the_api_pages_hold_every_module_once():
  listed = re.findall(r"^::: (\S+)$", "\n".join(reference.pages().values()), re.MULTILINE)
  package = small.ROOT / "retree_jax"
  paths = (path.relative_to(small.ROOT).with_suffix("") for path in package.rglob("*.py"))
  modules = {".".join(path.parts).removesuffix(".__init__") for path in paths}
  assert len(listed) == len(set(listed))
  assert {name for name in modules if "__main__" not in name} - set(listed) <= {"retree_jax"}


def test_every_document_has_a_place_in_the_menu():
  menu = (small.ROOT / "properdocs.yml").read_text()
  documents = {str(path.relative_to(small.ROOT / "docs")) for path in (small.ROOT / "docs").rglob("*.md")}
  documents |= {name for name in notebooks.pages() if name.endswith(".md")}
  assert {name for name in documents - {"guide/README.md"} if f": {name}\n" not in menu} == set()


def test_the_pages_of_notebooks_show_what_their_cells_drew():
  pages = notebooks.pages()
  for path in notebooks.FOLDER.glob("*.ipynb"):
    text = pages[f"notebooks/{path.stem}.md"]
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert shown and all(len(pages[f"notebooks/{name}"]) > 1000 for name in shown), path.stem


def test_comments_become_cells_without_markup():
  made = fields._cell('"A"; joined by "+", each with "*W", x * y <z>|')
  assert made == '`"A"`; joined by `"+"`, each with `"*W"`, x \\* y &lt;z>\\|'
