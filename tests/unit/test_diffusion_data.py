"""Order of samples, captions, image sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import JobFailed
from worker.families.diffusion.data import EpochSampler, TrainingSamples, fit, with_label


def test_an_epoch_has_every_sample_once_and_the_next_another_order() -> None:
    sampler = EpochSampler(10, seed=1)
    first, second = sampler.take(10).tolist(), sampler.take(10).tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_sampler_goes_on_from_its_position() -> None:
    whole = EpochSampler(7, seed=3)
    order = torch.cat([whole.take(5) for _ in range(6)])
    for position in (0, 5, 10, 25):
        resumed = EpochSampler(7, seed=3, position=position)
        assert resumed.take(5).tolist() == order[position : position + 5].tolist()


def test_a_batch_may_be_larger_than_the_data() -> None:
    taken = EpochSampler(3, seed=0).take(8)
    assert torch.bincount(taken).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_seeds_give_different_orders() -> None:
    orders = {tuple(EpochSampler(50, seed=seed).take(50).tolist()) for seed in (0, 1, 2, 2**53 - 1)}
    assert len(orders) == 4


def samples(**changes: object) -> TrainingSamples:
    values = {
        "latents": torch.arange(4.0).view(4, 1, 1, 1),
        "prompt_embeds": torch.arange(9.0).view(9, 1, 1),
        "pooled": torch.arange(9.0).view(9, 1),
        "caption_rows": torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]]),
        "empty_row": 0,
    } | changes
    return TrainingSamples.of(**values)  # type: ignore[arg-type]


def test_a_sample_is_only_ever_given_its_own_captions() -> None:
    rows = torch.arange(4).repeat(200)
    chosen = samples().choose_captions(rows, 0.0, torch.Generator().manual_seed(0))
    assert ((chosen - 1) // 2).tolist() == rows.tolist()
    assert set(chosen.tolist()) == set(range(1, 9))


@pytest.mark.parametrize(("dropout", "least", "most"), [(0.0, 0, 0), (0.25, 200, 300), (1.0, 1000, 1000)])
def test_captions_are_dropped_as_often_as_asked(dropout: float, least: int, most: int) -> None:
    rows = torch.zeros(1000, dtype=torch.int64)
    chosen = samples().choose_captions(rows, dropout, torch.Generator().manual_seed(0))
    assert least <= int((chosen == 0).sum()) <= most


def test_latents_are_drawn_around_their_mean() -> None:
    table = samples()
    spread = TrainingSamples(
        mean=table.mean.half(),
        std=torch.full((4, 1, 1, 1), 0.5, dtype=torch.float16),
        prompt_embeds=table.prompt_embeds,
        pooled=table.pooled,
        latent_rows=torch.tensor([3, 2, 1, 0]),
        caption_rows=table.caption_rows,
        empty_row=0,
    )
    drawn = spread.draw_latents(torch.zeros(4000, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.03)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.02)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = Image.effect_noise((16, 16), 50).convert("RGB")
    assert fit(image, 16, 16) is image


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (33, 100), (1, 200)])
def test_an_image_is_padded_with_the_colour_of_its_border_and_never_cropped(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    image.paste((255, 0, 0), (size[0] // 4, size[1] // 4, size[0] * 3 // 4 or 1, size[1] * 3 // 4 or 1))
    fitted = np.asarray(fit(image, 32, 32)).astype(int)
    assert fitted.shape == (32, 32, 3)
    corners = fitted[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.abs(corners - (10, 200, 30)).max() <= 3


def test_an_image_may_be_fitted_to_another_shape() -> None:
    assert fit(Image.new("RGB", (50, 50)), 64, 32).size == (64, 32)


@dataclass(frozen=True)
class Item:
    label: str | None


def test_items_are_filtered_by_label() -> None:
    items = [Item("a"), Item("b"), Item(None), Item("a")]
    assert with_label(items, "a") == [Item("a"), Item("a")]
    assert with_label(items, None) == items


def test_a_label_that_nothing_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(JobFailed, match="its labels are a, b") as caught:
        with_label([Item("a"), Item("b")], "c")
    assert caught.value.code == "bad_input"
