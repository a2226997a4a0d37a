"""How varied a set of images is, and how much of the real variety it reaches, from the features of a backbone.

All statistics run in float64 on (N, D) feature arrays; the first argument is what was generated, the second the
real images. One number is not enough: copies of one image leave precision high, and many copies of a few images
leave recall of the rest alone. See :class:`Prdc`, :func:`vendi_score` and :func:`duplicate_rate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from worker.benchmark.quality import Features

#: The neighbourhood of "Improved Precision and Recall" (Kynkäänniemi et al. 2019, section 3) and torch-fidelity.
PRECISION_NEIGHBOURS: Final = 3
#: The neighbourhood of "Reliable Fidelity and Diversity Metrics" (Naeem et al. 2020, section 4) and prdc.
DENSITY_NEIGHBOURS: Final = 5

#: Near-copies lie within this share of the usual distance between neighbours. Measured on 64 × 64 logos with
#: EfficientNet-lite0: copies shifted by up to 2 px, dimmed and with noise lie at 0.13 to 0.21 (median of 60 copies of
#: one logo; at most 1 in 100 beyond 0.3), and of different logos at most 3 in 100 lie within 0.4, blurred ones 8.
DUPLICATE_SHARE: Final = 0.4

#: Rows of a distance matrix held at once: bounds memory at 1024 × N × 8 bytes.
_ROWS: Final = 1024
#: A feature this close to the mean, relative to its length, is the mean but for rounding.
_AT_THE_MEAN: Final = 1e-9


def _no_pulse() -> None:
    return None


class Prdc(NamedTuple):
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each sample of a set claims a ball that reaches to its k-th nearest neighbour in the set.
    """

    #: Share of the generated samples that lie in the ball of some real one.
    precision: float
    #: Share of the real samples that lie in the ball of some generated one.
    recall: float
    #: In how many real balls a generated sample lies, over k: 1 for equal distributions, may be more.
    density: float
    #: Share of the real balls in which some generated sample lies; one outlier cannot lift it, as it can recall.
    coverage: float


def mean_cosine(generated: Features, real_mean: Features) -> float:
    """Mean cosine of the angle between two different samples, seen from the mean of the real ones.

    About 0 when the samples spread around that mean as real ones do, 1 when all are one image. Centring is what
    makes it a signal: seen from the origin, features of any two images point much the same way. A set that is
    varied but off the real mean as a whole scores high too, so read :func:`vendi_score` beside it.

    Needs two samples (ValueError).
    """
    count = _require(generated, least=2)
    directions = _directions(generated, real_mean)
    # |Σ dᵢ|² holds every pair twice and every sample once with itself.
    total, own = np.square(directions.sum(axis=0)).sum(), np.square(directions).sum()
    return float((total - own) / (count * (count - 1)))


def vendi_score(generated: Features, real_mean: Features) -> float:
    """exp(−Σ λ ln λ) over the eigenvalues of K/n, K the cosines seen from the real mean (Friedman and Dieng 2023).

    Reads as a number of different images: n when all are orthogonal, 1 when all are alike. It grows with n, so
    compare sets of one size only.
    """
    count = _require(generated, least=1)
    directions = _directions(generated, real_mean)
    # K = dᵀd and ddᵀ have the same eigenvalues but for zeros, which add nothing.
    flat = count <= directions.shape[1]
    kernel = directions @ directions.T if flat else directions.T @ directions
    eigenvalues = np.linalg.eigvalsh(kernel).clip(min=0.0)
    if eigenvalues.sum() == 0.0:
        return 1.0
    shares = eigenvalues / eigenvalues.sum()
    shares = shares[shares > 0.0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def duplicate_radius(real: Features) -> float:
    """How near two images lie that are copies of each other: DUPLICATE_SHARE of the median distance from a real
    sample to its nearest other one. Needs two samples (ValueError).
    """
    _require(real, least=2)
    return DUPLICATE_SHARE * float(np.sqrt(np.median(_radii(real, 1, _no_pulse))))


def duplicate_rate(values: Features, radius: float) -> float:
    """Share of the samples that have a near-copy among the others: a sample within `radius` of them.

    With :func:`duplicate_radius` of as many real samples the rate of the real ones themselves is what a healthy
    set has. It looks at distances only, so it is not disturbed by a set that is off the real mean as a whole.
    Needs two samples (ValueError).
    """
    _require(values, least=2)
    # Equal images differ by rounding in the squared distance.
    rounding = 1e-12 * float(np.square(values).sum(axis=1).max())
    return float((_radii(values, 1, _no_pulse) <= max(radius**2, rounding)).mean())


def spread(generated: Features, real: Features) -> float:
    """Total variance of the generated features over that of the real ones: 1 when alike, 0 when all are one image.

    1 also when the real samples are all one image: there is no variance to reach.
    """
    _require(generated, least=1)
    _require(real, least=1)
    reference = float(real.var(axis=0).sum())
    return float(generated.var(axis=0).sum()) / reference if reference > 0.0 else 1.0


def prdc(
    generated: Features,
    real: Features,
    *,
    neighbours: int = DENSITY_NEIGHBOURS,
    pulse: Callable[[], None] = _no_pulse,
) -> Prdc:
    """All four of :class:`Prdc` with balls to the `neighbours`-th nearest other sample.

    `pulse` is called every 1,024 rows of the distance matrices, since 100,000 samples take minutes; it may raise
    to give up. Needs more samples a side than neighbours (ValueError).
    """
    _require(generated, least=neighbours + 1)
    _require(real, least=neighbours + 1)
    if generated.shape[1] != real.shape[1]:
        raise ValueError(f"features of two backbones: {generated.shape[1]} and {real.shape[1]} values")
    generated_radii, real_radii = _radii(generated, neighbours, pulse), _radii(real, neighbours, pulse)
    precise = balls = 0
    recalled, nearest = np.zeros(len(real), dtype=bool), np.full(len(real), np.inf)
    for start in range(0, len(generated), _ROWS):
        band = slice(start, start + _ROWS)
        distances = _squared_distances(generated[band], real)
        inside = distances <= real_radii
        precise += int(inside.any(axis=1).sum())
        balls += int(inside.sum())
        recalled |= (distances <= generated_radii[band, None]).any(axis=0)
        nearest = np.minimum(nearest, distances.min(axis=0))
        pulse()
    return Prdc(
        precision=precise / len(generated),
        recall=float(recalled.mean()),
        density=balls / (neighbours * len(generated)),
        coverage=float((nearest <= real_radii).mean()),
    )


def _directions(values: Features, mean: Features) -> Features:
    """Unit vectors from the mean to each sample, (N, D); zero for a sample at the mean, which has no direction."""
    offsets = values - mean
    lengths = np.linalg.norm(offsets, axis=1, keepdims=True)
    scale = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.linalg.norm(mean))
    there = lengths > _AT_THE_MEAN * scale
    units: Features = np.divide(offsets, lengths, out=np.zeros_like(offsets), where=there)
    return units


def _radii(values: Features, neighbours: int, pulse: Callable[[], None]) -> Features:
    """Squared distance of each sample to its k-th nearest other one, (N,)."""
    radii = np.empty(len(values))
    for start in range(0, len(values), _ROWS):
        distances = _squared_distances(values[start : start + _ROWS], values)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        radii[start : start + len(rows)] = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]
        pulse()
    return radii


def _squared_distances(x: Features, y: Features) -> Features:
    """‖xᵢ − yⱼ‖², (n, m)."""
    squares: Features = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :] - 2.0 * (x @ y.T)
    return np.maximum(squares, 0.0)


def _require(values: Features, *, least: int) -> int:
    if len(values) < least:
        raise ValueError(f"needs {least} samples, has {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError("features are not finite")
    return len(values)
