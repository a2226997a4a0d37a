"""The augmentation pipe: each transform alone against what it is called, and the whole against randomness."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from worker.families.gan.augment import EVERYTHING, AugmentPipe, Parameters, Transforms, augment
from worker.families.gan.augment import colour as colours
from worker.families.gan.augment import geometry as geometries
from worker.families.gan.augment.draws import identity
from worker.families.gan.augment.grid_sample import grid_sample
from worker.families.gan.augment.warp import SYM6, warp
from worker.families.gan.networks.resample import upfirdn2d

NAMES = [field.name for field in fields(Transforms)]
GEOMETRIC = NAMES[:7]
OFF = dict.fromkeys(NAMES, 0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 2, size: int = 24) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=generator(1)) * 2 - 1


def smooth(count: int = 2, size: int = 32) -> Tensor:
    """Images in which nothing is finer than some five pixels."""
    rough = torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator(1))
    rough = functional.pad(rough, (9,) * 4, mode="reflect")
    taps = torch.exp(-(torch.arange(-9, 10, dtype=torch.float64) ** 2) / (2 * 2.5**2))
    images = upfirdn2d(rough, taps / taps.sum())
    return images / images.abs().max()


def only(name: str, p: float = 1.0) -> AugmentPipe:
    return AugmentPipe(Transforms(**OFF | {name: 1.0}), p=p)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def forward_warp(images: Tensor, matrix: Tensor) -> Tensor:
    """By a matrix that says where things go, not where they come from."""
    return warp(images, torch.linalg.inv(matrix).expand(images.shape[0], 3, 3))


# The filter


def _daubechies(choice: tuple[int, ...]) -> np.ndarray:
    """The orthogonal filter of six vanishing moments whose roots are inside (0) or outside (1) the unit circle."""
    polynomial = [math.comb(5 + power, power) for power in range(6)]
    roots = []
    for root, outside in zip([y for y in np.roots(polynomial[::-1]) if y.imag > -1e-9], choice, strict=True):
        pair = np.roots([1, 4 * root - 2, 1])
        chosen = pair[np.argsort(np.abs(pair))[outside]]
        roots += [chosen] if abs(root.imag) < 1e-9 else [chosen, chosen.conj()]
    taps = np.real(np.poly([*roots, *[-1] * 6]))
    return taps * 2**0.5 / taps.sum()


def _crookedness(taps: np.ndarray) -> float:
    """How far the phase is from a straight line through zero."""
    frequency = np.linspace(0.01, 2.8, 300)
    phase = np.unwrap(np.angle(np.exp(-1j * np.outer(frequency, np.arange(12))) @ taps))
    line = (phase @ frequency) / (frequency @ frequency) * frequency
    return float(np.square(phase - line).mean())


def test_sym6_is_the_least_asymmetric_of_the_orthogonal_filters_with_six_vanishing_moments() -> None:
    candidates = [_daubechies(choice) for choice in itertools.product((0, 1), repeat=3)]
    straightest = min(_crookedness(taps) for taps in candidates)
    best = [taps for taps in candidates if _crookedness(taps) < straightest + 1e-6]
    assert len(best) == 2, "a filter and its mirror"
    assert any(np.allclose(SYM6, taps, rtol=0, atol=1e-10) for taps in best)


# Geometry


def test_the_identity_through_the_filters_gives_the_image_back() -> None:
    """A shift by next to nothing, since what is exactly the identity is not computed."""
    nothing = geometries.translate2d(numbers(1e-12), numbers(0))
    torch.testing.assert_close(forward_warp(noise(), nothing), noise(), rtol=0, atol=1e-10)
    found = forward_warp(noise().float(), nothing)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, noise().float(), rtol=0, atol=2e-5)


def test_at_p_0_images_are_returned_as_they_are() -> None:
    images = noise().float()
    assert torch.equal(AugmentPipe(EVERYTHING, p=0.0)(images, generator()), images)


@pytest.mark.parametrize(("right", "down"), [(3, 5), (-4, 0), (0, 2), (-1, -6)])
def test_a_shift_moves_a_dot_by_so_many_pixels(right: int, down: int) -> None:
    images = torch.full((1, 3, 24, 24), -1.0)
    images[:, :, 12, 10] = 1.0
    moved = forward_warp(images, geometries.translate2d(numbers(right), numbers(down)))
    expected = torch.full((1, 3, 24, 24), -1.0)
    expected[:, :, 12 + down, 10 + right] = 1.0
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-3)


def test_a_shift_by_half_a_pixel_lies_between() -> None:
    images = smooth()
    moved = forward_warp(images, geometries.translate2d(numbers(0.5), numbers(0)))
    middle = (images[..., 1:] + images[..., :-1]) / 2
    torch.testing.assert_close(moved[..., 4:-4], middle[..., 3:-4], rtol=0, atol=0.02)


@pytest.mark.parametrize(("right", "down"), [(2, -3), (0, 5), (-9, 1), (40, 0)])
def test_a_shift_by_whole_pixels_is_what_the_filters_would_make_of_it(right: int, down: int) -> None:
    """Near whole pixels they are asked: only exactly whole ones are moved without them."""
    whole = forward_warp(noise(), geometries.translate2d(numbers(right), numbers(down)))
    nearly = forward_warp(noise(), geometries.translate2d(numbers(right + 1e-12), numbers(down)))
    inside = (slice(None), slice(None), slice(9, -9), slice(9, -9))
    torch.testing.assert_close(whole[inside], nearly[inside], rtol=0, atol=1e-6)


def test_shifted_images_differentiate_twice() -> None:
    images = noise(2, 10).requires_grad_()
    matrices = geometries.translate2d(numbers(2, -1), numbers(0, 3))
    assert torch.autograd.gradcheck(lambda x: warp(x, matrices), images)
    assert torch.autograd.gradgradcheck(lambda x: warp(x, matrices).square(), images)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turn_by_right_angles_is_that_of_torch(turns: int) -> None:
    turned = forward_warp(smooth(), geometries.rotate2d(numbers(turns * math.pi / 2)))
    torch.testing.assert_close(turned, torch.rot90(smooth(), turns, (2, 3)), rtol=0, atol=0.015)


def test_a_flip_changes_left_and_right() -> None:
    flipped = forward_warp(smooth(), geometries.scale2d(numbers(-1), numbers(1)))
    torch.testing.assert_close(flipped, smooth().flip(3), rtol=0, atol=0.015)


def test_a_scale_magnifies_from_the_centre() -> None:
    line = torch.linspace(-1, 1, 32, dtype=torch.float64)
    images = torch.stack([line.expand(32, 32), line[:, None].expand(32, 32), torch.zeros(32, 32)])[None]
    scaled = forward_warp(images, geometries.scale2d(numbers(2), numbers(1.25)))[0]
    torch.testing.assert_close(scaled[0], images[0, 0] / 2, rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled[1][4:-4], images[0, 1][4:-4] / 1.25, rtol=0, atol=1e-3)


def test_an_image_made_smaller_does_not_alias() -> None:
    """Stripes too fine for the smaller image become grey instead of coarse stripes."""
    columns = torch.arange(64, dtype=torch.float64)
    stripes = torch.cos(2 * math.pi * 0.45 * columns).expand(1, 3, 64, 64)
    shrunk = forward_warp(stripes, geometries.scale2d(numbers(0.55), numbers(0.55)))
    naive = functional.interpolate(stripes, scale_factor=0.55, mode="bilinear")
    assert shrunk[..., 24:-24, 24:-24].abs().max() < 0.25 < naive.abs().max()


@pytest.mark.parametrize(("right", "down", "angle"), [(13.3, -20.7, 0.4), (-5.1, 11.0, 2.0)])
def test_beyond_the_border_the_image_is_its_own_mirror(right: float, down: float, angle: float) -> None:
    images = smooth()
    matrix = geometries.translate2d(numbers(right), numbers(down)) @ geometries.rotate2d(numbers(angle))
    padded = functional.pad(images, (31,) * 4, mode="reflect")
    expected = forward_warp(padded, matrix)[..., 31:-31, 31:-31]
    torch.testing.assert_close(forward_warp(images, matrix), expected, rtol=0, atol=0.01)


def test_however_far_out_a_place_lies_it_is_folded_back() -> None:
    """A mirror repeats after twice the size less two pixels."""
    images, period = smooth(), 2 * 31
    near, far = (forward_warp(images, geometries.translate2d(numbers(7.25 + n * period), numbers(0))) for n in (0, 5))
    torch.testing.assert_close(far, near, rtol=0, atol=0.01)


def test_rectangular_images_turn_around_their_centre() -> None:
    images = torch.full((1, 3, 20, 40), -1.0)
    images[:, :, 9:11, 23:25] = 1.0
    turned = forward_warp(images, geometries.rotate2d(numbers(math.pi / 2)))[0, 0] + 1
    # Further to the left and right there are mirror images.
    turned = turned[:, 10:30]
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(10.0, 30.0), indexing="ij")
    centre = [float((turned * places).sum() / turned.sum()) for places in (columns, rows)]
    assert centre == pytest.approx([19.5, 9.5 - 4], abs=0.1)


def test_transforms_happen_one_after_the_other() -> None:
    """A shift by an eighth comes after the scale and is not magnified by it."""
    scaled, shifted = (only(name).draw(50, (64, 64), generator(3)).geometry for name in ("scale", "fractional_shift"))
    both = AugmentPipe(Transforms(**OFF | {"scale": 1.0, "fractional_shift": 1.0}), p=1.0)
    found = torch.linalg.inv(both.draw(50, (64, 64), generator(3)).geometry)
    torch.testing.assert_close(found, torch.linalg.inv(shifted) @ torch.linalg.inv(scaled))


def test_images_too_small_for_the_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="6×8 pixels are too small"):
        AugmentPipe(EVERYTHING, p=1.0)(torch.zeros(1, 3, 8, 6), generator())


# Derivatives


def test_sampling_is_that_of_torch_and_differentiates_twice() -> None:
    images = torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=generator(), requires_grad=True)
    grid = torch.rand(2, 3, 4, 2, dtype=torch.float64, generator=generator(2)) * 2.4 - 1.2
    expected = functional.grid_sample(images, grid, padding_mode="border", align_corners=True)
    assert torch.equal(grid_sample(images, grid), expected)
    assert torch.autograd.gradcheck(lambda x: grid_sample(x, grid), (images,))
    assert torch.autograd.gradgradcheck(lambda x: grid_sample(x, grid) ** 3, (images,))


def test_the_whole_pipe_differentiates_twice() -> None:
    drawn = AugmentPipe(EVERYTHING, p=1.0).draw(1, (8, 8), generator(5))
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=generator(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment(x, drawn), (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, drawn) ** 2, (images,), fast_mode=True)


# Colour


def test_brightness_and_contrast_add_and_multiply() -> None:
    images = noise()
    matrices = colours.brighten(numbers(0.2, -0.3)) @ colours.stretch(numbers(1.5, 0.5))
    expected = torch.stack([images[0] * 1.5 + 0.2, images[1] * 0.5 - 0.3])
    torch.testing.assert_close(colours.apply_colour(images, matrices), expected)


def test_a_luma_flip_negates_luma_and_keeps_chroma() -> None:
    images = noise()
    flipped = colours.apply_colour(images, colours.flip_luma(numbers(1, 0)))
    luma = images.mean(1, keepdim=True)
    torch.testing.assert_close(flipped[0], (images - 2 * luma)[0])
    torch.testing.assert_close(flipped[1], images[1])


def test_a_turn_of_the_hue_keeps_luma_and_the_strength_of_colours() -> None:
    images = noise()
    turned = colours.apply_colour(images, colours.rotate_hue(numbers(0.7, 2.5)))
    torch.testing.assert_close(turned.mean(1), images.mean(1))
    torch.testing.assert_close(turned.square().sum(1), images.square().sum(1))
    assert not torch.allclose(turned, images, atol=0.1)


def test_a_third_of_a_turn_makes_red_green_and_green_blue() -> None:
    primaries = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    turned = colours.apply_colour(primaries, colours.rotate_hue(numbers(*[2 * math.pi / 3] * 3)))
    torch.testing.assert_close(turned, primaries.roll(-1, 0))


def test_saturation_stretches_away_from_the_grey_of_the_same_luma() -> None:
    images = noise()
    saturated = colours.apply_colour(images, colours.saturate(numbers(2, 0)))
    luma = images.mean(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(saturated[0], (2 * images - luma)[0])
    torch.testing.assert_close(saturated[1], luma[1])


def test_colour_transforms_happen_one_after_the_other() -> None:
    """Contrast comes after brightness and stretches what that added."""
    names = ("brightness", "contrast")
    brightness, contrast = (only(name).draw(50, (64, 64), generator(3)).colour for name in names)
    both = AugmentPipe(Transforms(**OFF | dict.fromkeys(names, 1.0)), p=1.0)
    found = both.draw(50, (64, 64), generator(3)).colour
    torch.testing.assert_close(found[:, 0, 3], brightness[:, 0, 3] * contrast[:, 0, 0])


def test_colour_needs_three_channels() -> None:
    with pytest.raises(ValueError, match=r"RGB images \[N, 3, H, W\]; these have the shape \[1, 1, 16, 16\]"):
        AugmentPipe(EVERYTHING, p=1.0)(torch.zeros(1, 1, 16, 16), generator())


# Randomness

#: Of the images that a transform is drawn for, how many it visibly changes: a flip happens to every second, a turn
#: by right angles to three in four, a luma flip to every second. The shift may be by 0 pixels.
CHANGED = dict.fromkeys(NAMES, 1.0) | {"x_flip": 0.5, "rotate90": 0.75, "luma_flip": 0.5}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_each_transform_happens_as_often_as_p_says_and_nothing_else_does(name: str, p: float) -> None:
    count = 6000
    drawn = only(name, p).draw(count, (4096, 4096), generator(7))
    moved = (drawn.geometry != identity(3)).flatten(1).any(1)
    coloured = (drawn.colour != identity(4)).flatten(1).any(1)
    changed, other = (moved, coloured) if name in GEOMETRIC else (coloured, moved)
    assert not other.any()
    expected = p * CHANGED[name]
    deviation = math.sqrt(expected * (1 - expected) / count)
    assert float(changed.double().mean()) == pytest.approx(expected, abs=4 * deviation)


def test_a_factor_multiplies_p() -> None:
    drawn = AugmentPipe(Transforms(**OFF | {"scale": 0.5}), p=0.4).draw(6000, (64, 64), generator(7))
    share = float((drawn.geometry != identity(3)).flatten(1).any(1).double().mean())
    assert share == pytest.approx(0.2, abs=0.02)
    certain = AugmentPipe(Transforms(**OFF | {"scale": 5.0, "rotate": 5.0}), p=0.4).draw(100, (64, 64), generator(7))
    assert (certain.geometry != identity(3)).flatten(1).any(1).all()


def test_the_drawn_sizes_are_those_of_the_paper() -> None:
    count, size = 20_000, 1000

    def drawn(name: str) -> Parameters:
        return only(name).draw(count, (size, size), generator(11))

    def octaves(values: Tensor) -> float:
        return float(torch.log2(values).std())

    whole = drawn("integer_shift").geometry[:, :2, 2]
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) == 125 and float(whole.std()) == pytest.approx(250 / 12**0.5, rel=0.02)
    assert float(drawn("fractional_shift").geometry[:, :2, 2].std()) == pytest.approx(125, rel=0.02)
    scale = drawn("scale").geometry
    assert torch.equal(scale[:, 0, 0], scale[:, 1, 1]) and octaves(scale[:, 0, 0]) == pytest.approx(0.2, rel=0.02)
    wide = drawn("anisotropic_scale").geometry
    torch.testing.assert_close(wide[:, 0, 0] * wide[:, 1, 1], torch.ones(count, dtype=torch.float64))
    assert octaves(wide[:, 0, 0]) == pytest.approx(0.2, rel=0.02)
    turned = drawn("rotate").geometry
    angles = torch.atan2(turned[:, 1, 0], turned[:, 0, 0])
    assert torch.histc(angles, 8).tolist() == pytest.approx([count / 8] * 8, rel=0.08)
    turns = torch.atan2(*drawn("rotate90").geometry[:, :2, 0].T.flip(0)) / (math.pi / 2)
    assert sorted(set(turns.round().abs().tolist())) == [0, 1, 2]
    assert float(drawn("brightness").colour[:, 0, 3].std()) == pytest.approx(0.2, rel=0.02)
    assert octaves(drawn("contrast").colour[:, 0, 0]) == pytest.approx(0.5, rel=0.02)
    strengths = drawn("saturation").colour[:, 0, 0] - drawn("saturation").colour[:, 0, 1]
    assert octaves(strengths) == pytest.approx(1.0, rel=0.02)
    cosines = (torch.diagonal(drawn("hue").colour, dim1=1, dim2=2).sum(1) - 2) / 2
    assert float(cosines.mean()) == pytest.approx(0, abs=0.02) and float(cosines.std()) == pytest.approx(
        0.5**0.5, rel=0.02
    )


def test_what_would_change_a_logo_is_off_by_default() -> None:
    off = {name for name in NAMES if getattr(Transforms(), name) == 0}
    assert off == {"x_flip", "rotate90", "rotate", "luma_flip", "hue"}
    drawn = AugmentPipe(p=1.0).draw(500, (64, 64), generator())
    # Neither mirrored nor turned: x stays along x, y along y.
    assert (drawn.geometry[:, [0, 1], [0, 1]] > 0).all()
    assert (drawn.geometry[:, [0, 1], [1, 0]] == 0).all()
    # Colours move in the plane of their own hue: what is equal in two channels stays equal.
    yellow = torch.tensor([1.0, 1.0, -0.5, 1.0], dtype=torch.float64)
    changed = drawn.colour @ yellow
    torch.testing.assert_close(changed[:, 0], changed[:, 1])
    assert (changed[:, 0] > changed[:, 2]).all()
    assert all(getattr(EVERYTHING, name) == 1 for name in NAMES)


def test_equal_generators_give_equal_images_and_others_do_not() -> None:
    pipe, images = AugmentPipe(EVERYTHING, p=0.8), noise(4).float()
    first, again, other = (pipe(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_generator_that_was_saved_goes_on_bitwise() -> None:
    pipe, images, source = AugmentPipe(EVERYTHING, p=0.8), noise(4).float(), generator(1)
    pipe(images, source)
    saved = source.get_state()
    expected = pipe(images, source)
    resumed = torch.Generator()
    resumed.set_state(saved)
    assert torch.equal(pipe(images, resumed), expected)


def test_what_an_image_draws_does_not_depend_on_p_or_on_what_is_off() -> None:
    """So that a run in which p moves a little goes on with the same numbers."""
    sources = [generator(1) for _ in range(3)]
    for pipe, source in zip(
        (AugmentPipe(p=0.0), AugmentPipe(p=1.0), AugmentPipe(EVERYTHING, p=0.5)), sources, strict=True
    ):
        pipe.draw(4, (16, 16), source)
    assert len({source.get_state().numpy().tobytes() for source in sources}) == 1


def test_images_of_a_batch_get_different_transforms() -> None:
    images = smooth(1).expand(4, 3, 32, 32)
    augmented = AugmentPipe(EVERYTHING, p=1.0)(images, generator(3))
    assert all(not torch.allclose(*augmented[[one, other]]) for one, other in itertools.combinations(range(4), 2))


def test_a_batch_taken_apart_is_augmented_as_a_whole_would_be() -> None:
    images = noise(6)
    drawn = AugmentPipe(EVERYTHING, p=0.6).draw(6, (24, 24), generator(3))
    parts = [augment(images[part], drawn[part]) for part in (slice(0, 6, 2), slice(1, 6, 2))]
    torch.testing.assert_close(torch.stack(parts, 1).flatten(0, 1), augment(images, drawn), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="3 images came with parameters for 6"):
        augment(images[:3], drawn)


def test_half_precision_images_are_augmented_in_full_precision() -> None:
    assert AugmentPipe(p=1.0)(noise().bfloat16(), generator()).dtype == torch.float32


def test_p_travels_with_the_state_and_keeps_to_its_range() -> None:
    pipe, other = AugmentPipe(p=0.25), AugmentPipe()
    assert list(pipe.state_dict()) == ["p"]
    other.load_state_dict(pipe.state_dict())
    assert float(other.p) == 0.25
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            pipe.set_p(wrong)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_factors_are_not_negative(factor: float) -> None:
    with pytest.raises(ValueError, match="factor of hue"):
        Transforms(hue=factor)
