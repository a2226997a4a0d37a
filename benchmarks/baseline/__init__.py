"""The first peer: a plain Flask, Celery and SQLAlchemy service, as one would write it in a day.

A request inserts a row and sends a Celery task with its id; the task marks the row running, does the work and marks it
succeeded. It has no leases, no fairness, no idempotency and no tenants: Calotype's numbers are compared with its. It is
written as its libraries' manuals teach it and left alone, so that the ratios mean something.
"""
