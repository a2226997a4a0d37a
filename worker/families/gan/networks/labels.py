"""Labels of class-conditional networks."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_labels(labels: Tensor | None, count: int, num_classes: int, network: str) -> Tensor | None:
    """Labels `[count, num_classes]` in fp32, or None where the network has no classes.

    Labels of width 0 count as none. Raises ValueError for labels that are missing, have no use, or do not fit.
    """
    if labels is None or labels.shape[-1] == 0:
        if num_classes:
            raise ValueError(f"the {network} is conditional: it needs labels of the shape [{count}, {num_classes}]")
        return None
    if not num_classes:
        raise ValueError(f"the {network} is unconditional: labels have no use here; leave them out")
    if labels.shape != (count, num_classes):
        raise ValueError(f"labels have the shape [{count}, {num_classes}]; these are {list(labels.shape)}")
    return labels.to(torch.float32)
