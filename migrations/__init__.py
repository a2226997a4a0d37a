"""Numbered migrations, run by :func:`calotype.database.migrate`."""
