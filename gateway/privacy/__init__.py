"""A customer's data in every store: what there is, to export, to delete. See docs/data.md."""
