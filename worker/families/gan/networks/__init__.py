"""The networks of the GAN family, written from their papers.

::

    stylegan3_config.py   settings of a StyleGAN3 generator; configurations T and R
    layer_plan.py         sizes, rates, cutoffs and padding of its layers
    generator.py          the generator: mapping.py, then synthesis.py
    synthesis_input.py    a continuous image of waves, to be moved and turned
    synthesis_layer.py    modulated_conv.py, then filtered_lrelu.py
    equivariance.py       EQ-T and EQ-R: whether its filters do what they are for
    flops.py              the arithmetic of an image
    discriminator.py      its discriminator, with minibatch_std.py
    r3gan.py              R3GAN, generator and discriminator: r3gan_config.py, r3gan_blocks.py
    palette.py            its images of few flat colours on white
    resample.py           upsample, pad, filter, downsample
    filters.py            low-pass filters
    linear.py             fully connected layers
    labels.py, inputs.py  what networks accept
"""
