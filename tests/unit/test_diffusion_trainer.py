"""The training loop: what it computes, how it resumes, how it survives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_sd3
import torch
from torch import Tensor, nn

from calotype.errors import JobFailed
from worker.families.diffusion.data import TrainingSamples
from worker.families.diffusion.trainer import Trainer, TrainSettings

SETTINGS = TrainSettings(
    steps=6, batch_size=6, learning_rate=1e-3, seed=4, lr_warmup_steps=2, lr_schedule="cosine", ema_decay=0.9
)


@pytest.fixture(scope="module")
def samples() -> TrainingSamples:
    source = torch.Generator().manual_seed(0)
    return TrainingSamples(
        mean=torch.randn(20, 4, 8, 8, generator=source),
        std=torch.rand(20, 4, 8, 8, generator=source) * 0.1,
        prompt_embeds=torch.randn(9, 8, 32, generator=source),
        pooled=torch.randn(9, 32, generator=source),
        latent_rows=torch.arange(20),
        caption_rows=torch.randint(1, 9, (20, 2), generator=source),
        empty_row=0,
    )


class SmallMemory(nn.Module):
    """A denoiser on a device where only so many samples fit at once."""

    def __init__(self, inner: Any, largest: int) -> None:
        super().__init__()
        self.inner = inner
        self.largest = largest

    def forward(self, hidden_states: Tensor, **others: Any) -> Any:
        if len(hidden_states) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.inner(hidden_states=hidden_states, **others)


def new_trainer(samples: TrainingSamples, **changes: Any) -> Trainer:
    return Trainer(tiny_sd3.transformer(), samples, replace(SETTINGS, **changes))


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """All tensors that decide how a training goes on."""
    state = {f"weight.{name}": p.detach() for name, p in trainer.parameters.items()}
    state |= {f"ema.{name}": value for name, value in (trainer.ema or {}).items()}
    for name, parameter in trainer.parameters.items():
        state |= {f"{moment}.{name}": value for moment, value in trainer.optimizer.state[parameter].items()}
    return state | {"random": trainer.random.get_state(), "losses": torch.tensor(trainer.losses)}


def assert_bitwise_equal(left: Trainer, right: Trainer) -> None:
    ours, theirs = everything(left), everything(right)
    assert ours.keys() == theirs.keys()
    different = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert not different
    assert left.sampler.position == right.sampler.position
    assert left.step_count == right.step_count


def test_training_learns(samples: TrainingSamples) -> None:
    one_image = replace(samples, mean=samples.mean[:1].expand(20, -1, -1, -1), std=None)
    trainer = new_trainer(one_image, steps=60, learning_rate=3e-3, lr_schedule="constant")
    trainer.run()
    assert sum(trainer.losses[-15:]) < 0.8 * sum(trainer.losses[:15])


def test_a_step_is_the_plain_gradient_step_of_the_mean_loss(samples: TrainingSamples) -> None:
    """Against autograd and AdamW by hand: no clipping, the first step, in which moments are the gradient."""
    trainer = new_trainer(samples, max_grad_norm=1e9, lr_warmup_steps=0, lr_schedule="constant", weight_decay=0.0)
    denoiser = tiny_sd3.transformer()
    draw = new_trainer(samples)._draw()
    noisy = (1 - draw.sigmas.view(-1, 1, 1, 1)) * draw.clean + draw.sigmas.view(-1, 1, 1, 1) * draw.noise
    velocity = denoiser(
        hidden_states=noisy,
        timestep=draw.sigmas * 1000,
        encoder_hidden_states=samples.prompt_embeds[draw.captions],
        pooled_projections=samples.pooled[draw.captions],
    ).sample
    loss = (velocity - (draw.noise - draw.clean)).square().mean()
    loss.backward()
    assert trainer.step() == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in denoiser.named_parameters():
        expected = parameter.grad / (parameter.grad.abs() + 1e-8)
        moved = (parameter.detach() - trainer.parameters[name].detach()) / SETTINGS.learning_rate
        settled = parameter.grad.abs() > 1e-5
        torch.testing.assert_close(moved[settled], expected[settled], rtol=0, atol=5e-3)


def test_a_resumed_training_is_bitwise_the_uninterrupted_one(samples: TrainingSamples, tmp_path: Path) -> None:
    whole = new_trainer(samples)
    whole.run()
    first = new_trainer(samples, checkpoint_every=3)
    first.run(on_checkpoint=lambda step: first.save(tmp_path / "state"))
    torch.manual_seed(999)
    second = new_trainer(samples)
    second.load(tmp_path / "state")
    assert second.step_count == 3
    second.run()
    assert_bitwise_equal(second, whole)
    assert_bitwise_equal(first, whole)


def test_a_state_holds_no_pickle(samples: TrainingSamples, tmp_path: Path) -> None:
    trainer = new_trainer(samples)
    trainer.step()
    trainer.save(tmp_path / "state")
    trainer.save(tmp_path / "state")
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["trainer.json", "trainer.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_state_of_other_settings_or_samples_is_refused(samples: TrainingSamples, tmp_path: Path) -> None:
    new_trainer(samples).save(tmp_path / "state")
    with pytest.raises(ValueError, match="learning_rate"):
        new_trainer(samples, learning_rate=2e-3).load(tmp_path / "state")
    fewer = replace(samples, latent_rows=samples.latent_rows[:10], caption_rows=samples.caption_rows[:10])
    with pytest.raises(ValueError, match="20 samples"):
        new_trainer(fewer).load(tmp_path / "state")
    new_trainer(samples, micro_batch_size=2, checkpoint_every=1).load(tmp_path / "state")


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(samples: TrainingSamples) -> None:
    messages: list[str] = []
    roomy = Trainer(SmallMemory(tiny_sd3.transformer(), 99), samples, SETTINGS)
    tight = Trainer(SmallMemory(tiny_sd3.transformer(), 2), samples, SETTINGS, log=messages.append)
    losses = [(roomy.step(), tight.step()) for _ in range(3)]
    assert tight.micro_batch_size == 2  # 6 → 3 → 2
    assert len(messages) == 2
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert tight.sampler.position == roomy.sampler.position == 18
    assert torch.equal(tight.random.get_state(), roomy.random.get_state())


def test_the_gradient_after_shrinking_is_the_same(samples: TrainingSamples) -> None:
    gradients = []
    for largest in (99, 4):
        trainer = Trainer(SmallMemory(tiny_sd3.transformer(), largest), samples, SETTINGS)
        trainer._gradients(trainer._draw())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.parameters.values() if p.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) <= 1e-5


def test_a_single_sample_that_does_not_fit_fails_with_a_stable_code(samples: TrainingSamples) -> None:
    trainer = Trainer(SmallMemory(tiny_sd3.transformer(), 0), samples, replace(SETTINGS, batch_size=2))
    with pytest.raises(JobFailed) as caught:
        trainer.run()
    assert caught.value.code == "out_of_memory"
    assert "gradient_checkpointing" in caught.value.detail


def test_another_error_is_not_taken_for_out_of_memory(samples: TrainingSamples) -> None:
    trainer = new_trainer(samples)
    trainer.denoiser.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.step()


def test_a_step_that_fails_leaves_the_state_of_the_step_before(samples: TrainingSamples) -> None:
    trainer, other = new_trainer(samples), new_trainer(samples)
    trainer.step()
    other.step()
    hook = trainer.denoiser.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    hook.remove()
    trainer.step()
    other.step()
    assert_bitwise_equal(trainer, other)


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(samples: TrainingSamples) -> None:
    trainer = Trainer(tiny_sd3.transformer(), replace(samples, mean=samples.mean * float("nan")), SETTINGS)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    with pytest.raises(JobFailed) as caught:
        trainer.run()
    assert caught.value.code == "numerical_error"
    assert all(torch.equal(before[name], p) for name, p in trainer.parameters.items())


def test_an_fp16_overflow_replays_the_step_with_a_smaller_scale(samples: TrainingSamples) -> None:
    trainer = new_trainer(samples, mixed_precision="fp16")
    plain = new_trainer(samples)
    trainer.loss_scale = 2.0**28
    assert trainer.step() == pytest.approx(plain.step(), rel=1e-2)
    assert 1 < trainer.loss_scale < 2.0**28
    assert trainer.sampler.position == SETTINGS.batch_size


def test_bf16_agrees_with_fp32_within_its_precision(samples: TrainingSamples) -> None:
    assert new_trainer(samples, mixed_precision="bf16").step() == pytest.approx(new_trainer(samples).step(), rel=1e-2)


def test_gradient_checkpointing_changes_nothing(samples: TrainingSamples) -> None:
    plain, checkpointed = new_trainer(samples), new_trainer(samples, gradient_checkpointing=True)
    for _ in range(2):
        assert plain.step() == pytest.approx(checkpointed.step(), rel=1e-6)


def test_the_average_follows_the_weights_and_can_be_used(samples: TrainingSamples) -> None:
    trainer = new_trainer(samples)
    trainer.run()
    name, own = next((n, p.detach().clone()) for n, p in trainer.parameters.items() if "proj_out" in n)
    assert trainer.ema is not None
    with trainer.averaged_weights():
        assert torch.equal(trainer.parameters[name], trainer.ema[name])
        assert not torch.equal(trainer.parameters[name], own)
        assert not trainer.denoiser.training
    assert torch.equal(trainer.parameters[name], own)
    assert trainer.denoiser.training


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    settings = replace(SETTINGS, steps=100, lr_warmup_steps=10, lr_decay_start=0.5, learning_rate=1.0)
    assert settings.learning_rate_at(0) == pytest.approx(0.1)
    assert settings.learning_rate_at(9) == settings.learning_rate_at(50) == 1.0
    assert settings.learning_rate_at(75) == pytest.approx(0.5)
    assert settings.learning_rate_at(99) < 0.001
    assert replace(settings, lr_schedule="constant").learning_rate_at(99) == 1.0


def test_check_stops_between_two_steps(samples: TrainingSamples) -> None:
    trainer = new_trainer(samples)

    def check() -> None:
        if trainer.step_count == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.run(check=check)
    assert trainer.step_count == len(trainer.losses) == 2
