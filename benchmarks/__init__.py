"""The project's own measurements: real services, one run, ratios rather than bare seconds."""
