"""Measuring contenders on the user's own data: speed, memory, arithmetic floor and image quality.

`run.py` is the job handler, `timing.py` the clock, `floor.py` the least time that arithmetic allows,
`quality.py` the distances between image sets, `report.py` what a person reads.
"""
