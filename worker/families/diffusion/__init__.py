"""Diffusion in the SD3 architecture: the starter on a CPU and SD3.5 on an A100 by the same code.

::

    flow.py      noise levels, noising, losses            data.py   which samples, in which order, at which
    size cache.py     latents and text embeddings on disk      trainer.py  the step loop lora.py      adapters
    state.py    its state as files load.py      a registered version as a pipeline       train.py, generate.py
    the handlers
"""
