"""Adaptive discriminator augmentation: what the discriminator sees in place of the images.

Karras et al., "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676, "the ADA paper" in the
modules here), Appendix B: the pipe "bgc", which is pixel blitting, general geometric and colour transforms. Reals and
fakes pass through the same pipe, and gradients flow back through it to the generator. As long as a transform is skipped
often enough the generator still learns the images as they were, not as they were transformed (Section 2.2).
"""

from worker.families.gan.augment.pipe import AugmentPipe, Parameters, augment
from worker.families.gan.augment.transforms import EVERYTHING, Transforms

__all__ = ["EVERYTHING", "AugmentPipe", "Parameters", "Transforms", "augment"]
