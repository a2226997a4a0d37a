"""The worker: takes jobs from Postgres, runs them, publishes what they made.

Importing this package loads neither torch nor Celery: the reconciler lives here too and must stay small.
"""
