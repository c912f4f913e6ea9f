"""Formulas as MathML, which browsers draw without scripts or fonts from elsewhere."""

import html
import re

from latex2mathml import converter

_MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def to_mathml(page: str) -> str:
  """A page's HTML with MathML for the formulas that `pymdownx.arithmatex` has marked.

  Raises:
    ValueError: a formula has a command that is not understood.
  """

  def convert(match: re.Match) -> str:
    source = html.unescape(match[2]).strip()
    formula = converter.convert(source, display="block" if match[1] == "div" else "inline")
    if "\\" in formula:
      raise ValueError(f"the formula {source!r} has a command that latex2mathml does not know")
    return f'<div class="formula">{formula}</div>' if match[1] == "div" else formula

  return _MARKED.sub(convert, page)
