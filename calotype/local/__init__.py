"""The embedded stack: a real Postgres, Redis and S3 endpoint from Python wheels, and what runs on them."""
