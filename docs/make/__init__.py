"""What the documentation site makes while it is built: the page of all config fields, the API pages, formulas, a gallery."""
