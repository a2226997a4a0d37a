"""Webhooks: a signed POST to the URL that a job names, once the job has ended (Standard Webhooks 1.0).

The transaction that ends a job writes a row into the `outbox`; the reconciler's leader takes it (`trying`) and sends it
(`sending`), over days if it must (`schedule`). Nothing is imported here: settings and specs read `targets`, and need
neither a database nor an HTTP library for it.
"""
