"""Minibatch standard deviation: how unlike each other the images of a group are, told to the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor


def append_minibatch_std(x: Tensor, group_size: int = 4) -> Tensor:
    """Feature maps `[N, C, H, W]` with one more channel: the standard deviation over a group, averaged over channels
    and places. (Karras et al., arXiv 1710.10196, Section 3)

    A group has the largest size that divides N and is at most `group_size`. Its images lie N/size apart: image i is in
    group i modulo N/size. So `x[part::parts]` keeps groups whole, as long as each part holds whole groups: a batch that
    is split like this has the same gradient.
    """
    count = x.shape[0]
    size = max(candidate for candidate in range(1, min(group_size, count) + 1) if count % candidate == 0)
    groups = x.reshape(size, count // size, -1)
    deviation = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=1)
    channel = deviation.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel], dim=1)
