"""``python -m calotype.cli``."""

from __future__ import annotations

from calotype.cli import main

if __name__ == "__main__":
    main()
