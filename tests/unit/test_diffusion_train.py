"""What the train handler decides: settings, validation rounds, the loss curve."""

from __future__ import annotations

from typing import Any

import pytest

from calotype.specs import DiffusionTrainInput
from worker.families.diffusion.train import loss_curve, train_settings, validates_at


def spec(**changes: Any) -> DiffusionTrainInput:
    values: dict[str, Any] = {"dataset": "ds", "steps": 100, "output_model": "mine", "seed": 7}
    return DiffusionTrainInput(**(values | changes))


def test_the_request_reaches_the_trainer() -> None:
    asked = spec(
        batch_size=3,
        learning_rate=0.5,
        lr_schedule="cosine",
        lr_warmup_steps=5,
        ema_decay=0.9,
        mixed_precision="bf16",
        caption_dropout=0.3,
        loss="diffusers_compat",
        timestep_sampling="mode",
        logit_mean=0.4,
        gradient_checkpointing=True,
        checkpoint_every=9,
    )
    settings = train_settings(asked, shift=3.0)
    for name in (
        "steps",
        "batch_size",
        "learning_rate",
        "lr_schedule",
        "lr_warmup_steps",
        "ema_decay",
        "mixed_precision",
        "caption_dropout",
        "loss",
        "timestep_sampling",
        "logit_mean",
        "logit_std",
        "gradient_checkpointing",
        "checkpoint_every",
        "weight_decay",
        "max_grad_norm",
        "seed",
    ):
        assert getattr(settings, name) == getattr(asked, name), name
    assert settings.shift == 3.0


def test_a_spec_without_a_seed_is_not_complete() -> None:
    with pytest.raises(ValueError, match="seed"):
        train_settings(spec(seed=None), shift=1.0)


@pytest.mark.parametrize(
    ("every", "rounds"), [(10, [30, 50, 80]), (25, [25, 50, 75]), (60, [60]), (1, [25, 50, 75]), (500, [])]
)
def test_validation_rounds_fall_on_the_checkpoints_past_each_quarter(every: int, rounds: list[int]) -> None:
    asked = spec(checkpoint_every=every)
    assert [step for step in range(every, 100, every) if validates_at(asked, step)] == rounds


def test_a_short_loss_curve_has_every_step() -> None:
    assert loss_curve([2.0, 1.0]) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_a_long_loss_curve_is_averaged_and_ends_with_the_last_step() -> None:
    curve = loss_curve([float(step % 2) for step in range(1001)])
    assert len(curve) <= 400
    assert curve[-1]["step"] == 1001
    assert curve[0] == {"step": 3, "loss": pytest.approx(1 / 3, abs=1e-6)}
