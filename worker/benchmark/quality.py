"""How far a set of images is from another one: Fréchet distance and KID over the features of a backbone.

All statistics run in float64 on (N, D) feature arrays. The first argument is what was generated, the second
the real images; both distances are symmetric.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from worker.benchmark.backbone import EFFICIENTNET_LITE0, Backbone, load_backbone

Features = NDArray[np.float64]

#: Below this many samples the covariance of common backbones is close to singular and FD is biased upwards.
FD_RELIABLE_SAMPLES: Final = 2048

#: torch-fidelity's defaults: this many subsets of at most this size, drawn with this seed.
KID_SUBSETS: Final = 100
KID_SUBSET_SIZE: Final = 1000
KID_SEED: Final = 2020

#: Rows of a kernel matrix held at once: bounds memory at 1024 × N × 8 bytes.
_KERNEL_ROWS: Final = 1024


class Kid(NamedTuple):
    """Kernel distance with its 95 % confidence interval; unbiased: alike sets scatter around 0."""

    mean: float
    ci_low: float
    ci_high: float


def features(
    images: Iterable[Image.Image],
    backbone: str | Backbone = EFFICIENTNET_LITE0,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> Features:
    """Features of PIL images, float64 (N, D); images may differ in size and are taken as RGB on white.

    `on_batch` hears the number of images done after each batch. Raises ValueError when there is no image.
    """
    network = _shared_backbone(backbone, str(device)) if isinstance(backbone, str) else backbone.to(device)
    done: list[Features] = []
    count = 0
    for batch in _batches(images, batch_size):
        done.append(_batch_features(network, batch, device))
        count += len(batch)
        if on_batch is not None:
            on_batch(count)
    if not done:
        raise ValueError("features of no image were asked for")
    return np.concatenate(done)


def frechet_distance(generated: Features, real: Features) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂) (Heusel et al. 2017, equation 6).

    The last trace is the sum of the square roots of the eigenvalues of Σ₁Σ₂. With Σᵢ = AᵢᵀAᵢ those are the
    singular values of A₁A₂ᵀ, real and accurate also where Σ is singular, as with fewer samples than features.
    Needs at least two samples a side (ValueError).
    """
    _require_samples(generated, real, least=2)
    offset = generated.mean(axis=0) - real.mean(axis=0)
    first, second = _covariance_root(generated), _covariance_root(real)
    overlap = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(offset @ offset + np.square(first).sum() + np.square(second).sum() - 2.0 * overlap)


def kid(
    generated: Features,
    real: Features,
    *,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
    pulse: Callable[[], None] = lambda: None,
) -> Kid:
    """Unbiased squared MMD with kernel (x·y/D + 1)³ (Bińkowski et al. 2018), as a mean over random subsets.

    The subsets (torch-fidelity's: `subsets` draws of min(subset_size, N)) make the value comparable with
    published ones. Their scatter is no confidence interval: subsets overlap, and are all the same once
    N ≤ subset_size. The interval is mean ± 1.96 standard errors by the delete-one jackknife over both sets.

    `pulse` is called every second or so, since 100,000 samples take minutes; it may raise to give up.
    """
    _require_samples(generated, real, least=2)
    size = min(subset_size, len(generated), len(real))
    random = np.random.RandomState(seed)
    mine, theirs = np.zeros((len(generated), subsets)), np.zeros((len(real), subsets))
    for column in range(subsets):
        mine[random.choice(len(generated), size, replace=False), column] = 1.0
        theirs[random.choice(len(real), size, replace=False), column] = 1.0
    xx = _kernel_sums(generated, generated, mine, mine, pulse)
    yy = _kernel_sums(real, real, theirs, theirs, pulse)
    xy = _kernel_sums(generated, real, mine, theirs, pulse)
    own = (xx.subsets - mine.T @ _diagonal(generated) + yy.subsets - theirs.T @ _diagonal(real)) / (size - 1)
    mean = float((own / size - 2.0 * xy.subsets / size**2).mean())
    variance = _left_out_variance(xx.rows - _diagonal(generated), xy.rows, len(real))
    variance += _left_out_variance(yy.rows - _diagonal(real), xy.columns, len(generated))
    margin = 1.96 * float(np.sqrt(variance))
    return Kid(mean, mean - margin, mean + margin)


def fd_caveats(n_generated: int, n_real: int, dimensions: int) -> list[str]:
    """What a reader must know about a Fréchet distance from that many samples, as sentences; may be empty."""
    fewest = min(n_generated, n_real)
    if fewest >= max(FD_RELIABLE_SAMPLES, dimensions + 1):
        return []
    found = []
    if fewest <= dimensions:
        found.append(f"{fewest} samples cannot fill {dimensions} dimensions: the covariance matrix is singular.")
    found.append(
        f"With N = {fewest} (below {FD_RELIABLE_SAMPLES}) the Fréchet distance is biased upwards. Compare it "
        "only with values from the same number of samples, and read KID beside it, which is unbiased."
    )
    return found


class _KernelSums(NamedTuple):
    """Sums over the kernel matrix k(xᵢ, yⱼ) of two sets of n and m samples."""

    #: over j, shape (n,), and over i, shape (m,)
    rows: Features
    columns: Features
    #: over the i and j of each subset, shape (subsets,)
    subsets: Features


def _kernel_sums(x: Features, y: Features, of_x: Features, of_y: Features, pulse: Callable[[], None]) -> _KernelSums:
    """All sums in one pass over the matrix, a band of rows at a time; `of_x`, `of_y` mark subsets by 1."""
    rows, columns, subsets = np.zeros(len(x)), np.zeros(len(y)), np.zeros(of_x.shape[1])
    for start in range(0, len(x), _KERNEL_ROWS):
        band = slice(start, start + _KERNEL_ROWS)
        base = x[band] @ y.T / x.shape[1] + 1.0
        kernel = base * base * base
        rows[band] = kernel.sum(axis=1)
        columns += kernel.sum(axis=0)
        subsets += ((kernel @ of_y) * of_x[band]).sum(axis=0)
        pulse()
    return _KernelSums(rows, columns, subsets)


def _diagonal(x: Features) -> Features:
    """k(xᵢ, xᵢ): the terms that the unbiased estimate leaves out."""
    base: Features = np.square(x).sum(axis=1) / x.shape[1] + 1.0
    return base * base * base


def _left_out_variance(own: Features, cross: Features, others: int) -> float:
    """Jackknife variance from leaving out each of one side's n samples (Efron and Stein 1981).

    `own` are a sample's kernel sums with its own side, `cross` those with the `others` of the other side; (n,).
    """
    n = len(own)
    if n < 3:
        return float("inf")
    without = (own.sum() - 2.0 * own) / ((n - 1) * (n - 2)) - 2.0 * (cross.sum() - cross) / ((n - 1) * others)
    return float((n - 1) * without.var())


def _covariance_root(values: Features) -> Features:
    """A with AᵀA = Σ (divisor N − 1), of at most D rows."""
    centred: Features = (values - values.mean(axis=0)) / np.sqrt(len(values) - 1)
    if len(values) <= values.shape[1]:
        return centred
    # numpy's type stubs do not know that this mode returns one array.
    return np.linalg.qr(centred, mode="r")  # type: ignore[return-value]


def _require_samples(generated: Features, real: Features, *, least: int) -> None:
    if min(len(generated), len(real)) < least:
        raise ValueError(f"needs {least} samples a side, has {len(generated)} generated and {len(real)} real")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(f"features of two backbones: {generated.shape[1]} and {real.shape[1]} values")


@functools.lru_cache(maxsize=2)
def _shared_backbone(name: str, device: str) -> Backbone:
    return load_backbone(name, device)


def _batches(images: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield batch


@torch.inference_mode()
def _batch_features(network: Backbone, batch: Sequence[Image.Image], device: torch.device | str) -> Features:
    """Features of one batch; images of one size go through the network together."""
    arrays = [np.asarray(_on_white(image)) for image in batch]
    found = np.empty((len(batch), network.num_features), dtype=np.float64)
    for shape in dict.fromkeys(array.shape for array in arrays):
        rows = [row for row, array in enumerate(arrays) if array.shape == shape]
        pixels = torch.from_numpy(np.stack([arrays[row] for row in rows])).permute(0, 3, 1, 2)
        found[rows] = network(pixels.to(device)).double().cpu().numpy()
    return found


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
