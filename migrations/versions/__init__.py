"""One module a revision; their order is their number."""
