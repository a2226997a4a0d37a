"""Calotype's domain core: what a job is, where it lives and how it moves.

The package knows neither HTTP frameworks nor tensors: ``api`` and ``worker`` both import it, it imports neither.
"""

__version__ = "0.1.0"
