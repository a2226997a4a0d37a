"""The HTTP API: Flask views over :mod:`calotype`. It knows neither workers nor tensors."""
