"""Measurements of generated sets, verdicts, and the documents that show them."""
