"""How the starter assets are made: `python -m starter.recipe.<step>`; see README.md beside this file."""
