"""GANs: images in one pass of the network.

::

    networks/   generators and discriminators, written from their papers
    augment/    what the discriminator sees in place of the images; ada.py says how often
    losses.py   what both are trained to do, and gradient penalties
    schedule.py settings that change as training goes on
    ema.py      the running mean of the generator
    collapse.py the watch for mode collapse; collapse_plot.py its curve
    train.py    the handler of train jobs: recipe.py, data.py, reporting.py, result.py, curve.py
    course.py   the way of a training: trainer.py, evaluation.py, snapshots.py
    trainer.py  the steps: objective.py, blur.py, statistics.py, splitting.py; state.py their state
    team.py     several GPUs: a process for each, all taking the same steps (replicas.py)
    generate.py the handler of generate jobs: load.py, plan.py, sampling.py, animation.py
    stored.py   a version as a folder: weights and what they are of
    pickle_import.py   official StyleGAN3 files, read as data by pickle_machine.py and pickle_names.py
"""
