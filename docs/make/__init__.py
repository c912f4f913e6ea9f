"""What the documentation site makes while it is built: pages of config fields, API and notebooks, formulas, a gallery."""
