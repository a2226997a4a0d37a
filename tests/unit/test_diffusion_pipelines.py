"""Pipelines: adapters, seeds, batches, image to image, versions as folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_sd3
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors import safe_open

from calotype.errors import JobFailed
from worker.families.diffusion import lora
from worker.families.diffusion.data import TrainingSamples
from worker.families.diffusion.generate import max_prompt_tokens, prompt_tokens
from worker.families.diffusion.load import Loaded, lay_on, open_pipeline
from worker.families.diffusion.sampling import Sampling, Wanted, generate_images, sample
from worker.families.diffusion.stored import save_full_version, stored_dtype
from worker.families.diffusion.trainer import Trainer, TrainSettings
from worker.families.parts import in_parts

SD3 = SimpleNamespace(architecture="sd3", ref="tiny@1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny_sd3.pipeline().to(dtype=torch.float16).save_pretrained(path)
    return path


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    pipeline = open_pipeline(folder, SD3, torch.float32)  # type: ignore[arg-type]
    return Loaded(pipeline=pipeline, device=torch.device("cpu"), dtype=torch.float32, t5_tokens=0)


def draw(
    loaded: Loaded,
    seeds: list[int],
    prompts: list[str] | None = None,
    *,
    negative_prompt: str = "",
    init_image: Image.Image | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    **changes: Any,
) -> np.ndarray:
    sampling = Sampling(**({"width": 32, "height": 32, "steps": 3, "guidance_scale": 3.0} | changes))
    wanted = [
        Wanted(prompt=prompt, negative_prompt=negative_prompt, seed=seed, init_image=init_image)
        for prompt, seed in zip(prompts or ["red bird"] * len(seeds), seeds, strict=True)
    ]
    return np.stack([np.asarray(image).astype(int) for image in sample(loaded, wanted, sampling, on_step)])


def trained_adapter(folder: Path, into: Path, seed: int = 1, **options: Any) -> tuple[Path, Callable[[Loaded], Any]]:
    """An adapter whose weights are all far from zero, saved, and what the pipeline that carries it draws."""
    pipeline = open_pipeline(folder, SD3, torch.float32)  # type: ignore[arg-type]
    lora.add(pipeline.transformer, **({"rank": 4, "alpha": None, "use_dora": False, "seed": 0} | options))
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.2)
    into.mkdir()
    lora.save(pipeline.transformer, into)
    own = Loaded(pipeline=pipeline, device=torch.device("cpu"), dtype=torch.float32, t5_tokens=0)
    return into, draw(own, [5])


def test_one_seed_gives_one_image_and_another_seed_another(loaded: Loaded) -> None:
    assert np.array_equal(draw(loaded, [5]), draw(loaded, [5]))
    assert np.abs(draw(loaded, [5]) - draw(loaded, [6])).mean() > 1


def test_an_image_depends_on_its_seed_and_not_on_its_neighbours(loaded: Loaded) -> None:
    alone = draw(loaded, [7], ["blue"])[0]
    among = draw(loaded, [3, 7, 2**53 - 1], ["red bird", "blue", "green"])[1]
    assert np.abs(alone - among).max() <= 1


def test_a_call_is_what_the_plain_diffusers_pipeline_does(loaded: Loaded) -> None:
    plain = loaded.pipeline(
        prompt=["red bird", "blue", "red bird"],
        negative_prompt=["green"] * 3,
        width=32,
        height=32,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in (1, 2, 3)],
        max_sequence_length=0,
    ).images
    ours = draw(loaded, [1, 2, 3], ["red bird", "blue", "red bird"], negative_prompt="green")
    assert np.array_equal(ours, np.stack([np.asarray(image) for image in plain]))


def test_half_precision_as_on_a_gpu_draws_and_takes_adapters(folder: Path, tmp_path: Path) -> None:
    directory, _ = trained_adapter(folder, tmp_path / "adapter")
    pipeline = open_pipeline(folder, SD3, torch.bfloat16)  # type: ignore[arg-type]
    half = Loaded(pipeline=pipeline, device=torch.device("cpu"), dtype=torch.bfloat16, t5_tokens=0)
    image = Image.new("RGB", (32, 32), "red")
    plain = draw(half, [5]), draw(half, [5], init_image=image, strength=0.5)
    lora.activate(pipeline, [("one", directory, 1.0)])
    adapted = draw(half, [5]), draw(half, [5], init_image=image, strength=0.5)
    for left, right in zip(plain, adapted, strict=True):
        assert np.abs(left - right).mean() > 0.5


def test_a_prompt_longer_than_the_model_reads_can_be_told(loaded: Loaded) -> None:
    assert max_prompt_tokens(loaded) == 8
    assert prompt_tokens(loaded, "red") == 5
    assert prompt_tokens(loaded, "red bird on a wire") > 8


def test_prompt_guidance_and_negative_prompt_matter(loaded: Loaded) -> None:
    plain = draw(loaded, [5])
    for changes in ({"prompts": ["blue"]}, {"guidance_scale": 9.0}, {"negative_prompt": "blue"}, {"steps": 4}):
        assert not np.array_equal(plain, draw(loaded, [5], **changes))  # type: ignore[arg-type]


def test_every_scheduler_that_can_be_asked_for_runs_and_leaves_nothing_behind(loaded: Loaded) -> None:
    before = draw(loaded, [5])
    assert np.array_equal(draw(loaded, [5], scheduler="flow-match-euler"), before)
    assert not np.array_equal(draw(loaded, [5], scheduler="flow-match-heun"), before)
    assert np.array_equal(draw(loaded, [5]), before)


def test_image_to_image_keeps_more_of_the_image_at_less_strength(loaded: Loaded) -> None:
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    weak, again, strong = (
        draw(loaded, [5], init_image=image, strength=strength, steps=10) for strength in (0.1, 0.1, 0.9)
    )
    rebuilt = loaded.pipeline.vae(loaded.pipeline.image_processor.preprocess(image)).sample
    kept = np.asarray(loaded.pipeline.image_processor.postprocess(rebuilt.detach())[0]).astype(int)
    assert np.array_equal(weak, again)
    assert np.abs(weak[0] - kept).mean() < np.abs(strong[0] - kept).mean()


def test_each_step_is_reported_and_may_stop_the_call(loaded: Loaded) -> None:
    seen: list[tuple[int, int]] = []
    draw(loaded, [5], on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        draw(loaded, [5], on_step=stop)
    assert draw(loaded, [5]).shape == (1, 32, 32, 3)


def test_latents_that_are_no_numbers_fail_with_a_stable_code(loaded: Loaded) -> None:
    torch.nn.init.constant_(loaded.pipeline.transformer.proj_out.bias, float("nan"))
    with pytest.raises(JobFailed) as caught:
        generate_images(loaded, ["red"], [5], width=32, height=32, steps=3, guidance_scale=3.0)
    assert caught.value.code == "numerical_error"


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 4, "alpha": 16.0}, {"rank": 2, "use_dora": True}], ids=str)
def test_an_adapter_survives_the_way_through_its_file(
    folder: Path, loaded: Loaded, tmp_path: Path, options: dict[str, Any]
) -> None:
    directory, expected = trained_adapter(folder, tmp_path / "adapter", **options)
    assert [file.name for file in directory.iterdir()] == [lora.WEIGHTS]
    base = draw(loaded, [5])
    lora.activate(loaded.pipeline, [("one", directory, 1.0)])
    with_adapter = draw(loaded, [5])
    assert np.abs(with_adapter - expected).max() <= 1
    assert np.abs(with_adapter - base).mean() > 0.5
    lora.activate(loaded.pipeline, [])
    assert np.array_equal(draw(loaded, [5]), base)


def test_adapters_have_scales_and_add_up(folder: Path, loaded: Loaded, tmp_path: Path) -> None:
    one, _ = trained_adapter(folder, tmp_path / "one", seed=1)
    two, _ = trained_adapter(folder, tmp_path / "two", seed=2)
    pictures = []
    for adapters in (
        [],
        [("one", one, 0.0)],
        [("one", one, 0.5)],
        [("one", one, 1.0)],
        [("one", one, 1.0), ("two", two, 0.5)],
        [("two", two, 0.5), ("one", one, 1.0)],
    ):
        lora.activate(loaded.pipeline, adapters)
        pictures.append(draw(loaded, [5])[0])
    base, off, half, full, both, swapped = pictures
    assert np.abs(base - off).max() <= 1
    assert np.abs(both - swapped).max() <= 1
    for left, right in ((base, half), (half, full), (full, both)):
        assert np.abs(left - right).mean() > 0.2


def test_what_adapters_that_failed_half_way_left_is_taken_off_before_the_next_job(
    folder: Path, loaded: Loaded, tmp_path: Path
) -> None:
    base = draw(loaded, [5])[0]
    good, _ = trained_adapter(folder, tmp_path / "good")
    with pytest.raises(OSError, match="missing"):
        lay_on(loaded, (("good", good, 1.0), ("missing", tmp_path / "missing", 1.0)))
    lay_on(loaded, ())
    assert np.abs(draw(loaded, [5])[0] - base).max() <= 1


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_training_an_adapter_moves_the_adapter_and_nothing_else(folder: Path, gradient_checkpointing: bool) -> None:
    pipeline = open_pipeline(folder, SD3, torch.float32)  # type: ignore[arg-type]
    lora.add(pipeline.transformer, rank=4, alpha=None, use_dora=True, seed=0)
    before = {name: p.detach().clone() for name, p in pipeline.transformer.named_parameters()}
    source = torch.Generator().manual_seed(0)
    samples = TrainingSamples.of(
        torch.randn(4, 4, 8, 8, generator=source),
        torch.randn(5, 8, 32, generator=source),
        torch.randn(5, 32, generator=source),
        torch.arange(1, 5),
        0,
    )
    settings = TrainSettings(
        steps=2, batch_size=4, learning_rate=0.01, seed=0, gradient_checkpointing=gradient_checkpointing
    )
    Trainer(pipeline.transformer, samples, settings).run()
    moved = {n for n, p in pipeline.transformer.named_parameters() if not torch.equal(p, before[n])}
    # Nothing reads what the last block's text queries find.
    idle = "transformer_blocks.1.attn.add_q_proj.lora_B.default.weight"
    assert moved == {name for name in before if "lora" in name} - {idle}


def test_an_untrained_adapter_changes_nothing_and_is_decided_by_its_seed(folder: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        pipeline = open_pipeline(folder, SD3, torch.float32)  # type: ignore[arg-type]
        lora.add(pipeline.transformer, rank=4, alpha=None, use_dora=False, seed=seed)
        trained = {n: p for n, p in pipeline.transformer.named_parameters() if p.requires_grad}
        assert all("lora" in name for name in trained)
        # 8 projections a block, of which the last block lacks the text tokens' output; A and B for each.
        assert len(trained) == 2 * (2 * 8 - 1)
        drawn.append(torch.cat([p.detach().flatten() for n, p in trained.items() if "lora_A" in n]))
        assert all(float(p.detach().abs().max()) == 0 for n, p in trained.items() if "lora_B" in n)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_full_version_is_the_base_with_another_transformer(folder: Path, tmp_path: Path) -> None:
    changed = tiny_sd3.transformer(seed=9)
    save_full_version(changed, folder, tmp_path / "new")
    assert changed.dtype == torch.float32
    assert stored_dtype(tmp_path / "new" / "transformer") == stored_dtype(folder / "transformer") == torch.float16
    again = open_pipeline(tmp_path / "new", SD3, torch.float32)  # type: ignore[arg-type]
    base = open_pipeline(folder, SD3, torch.float32)  # type: ignore[arg-type]
    expected = changed.proj_out.weight.detach().half().float()
    assert torch.equal(again.transformer.proj_out.weight, expected)
    assert torch.equal(again.text_encoder.text_projection.weight, base.text_encoder.text_projection.weight)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*")} == names


def test_a_version_of_an_unknown_architecture_or_without_files_is_unavailable(folder: Path, tmp_path: Path) -> None:
    for directory, architecture in ((folder, "sdxl"), (tmp_path, "sd3")):
        with pytest.raises(JobFailed) as caught:
            version: Any = SimpleNamespace(architecture=architecture, ref="x@1")
            open_pipeline(directory, version, torch.float32)
        assert caught.value.code == "model_unavailable"


def test_a_pipeline_is_read_without_t5_and_without_pickles(folder: Path, tmp_path: Path) -> None:
    assert not list(folder.rglob("*.bin"))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder_3"] == [None, None]
    pipeline = open_pipeline(folder, SD3, torch.float32)  # type: ignore[arg-type]
    assert pipeline.text_encoder_3 is None
    assert isinstance(pipeline, StableDiffusion3Pipeline)
    with safe_open(folder / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.get_tensor("proj_out.weight").dtype == torch.float16


def test_running_out_of_memory_halves_the_batch_and_loses_no_image() -> None:
    calls: list[list[int]] = []
    made: list[int] = []
    messages: list[str] = []

    def make(numbers: Sequence[int]) -> None:
        calls.append(list(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made.extend(numbers)

    in_parts(range(7), 7, make, log=messages.append)
    assert made == list(range(7))
    assert calls == [list(range(7)), [0, 1, 2, 3], [0, 1], [2, 3], [4, 5], [6]]
    assert len(messages) == 2


def test_what_nobody_wants_any_more_is_left_out_of_the_next_call() -> None:
    calls: list[list[int]] = []
    in_parts(range(6), 2, lambda numbers: calls.append(list(numbers)), wanted=lambda n: n != 3 or not calls)
    assert calls == [[0, 1], [2, 4], [5]]


def test_an_image_that_does_not_fit_alone_fails_with_a_stable_code() -> None:
    def make(numbers: Sequence[int]) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    with pytest.raises(JobFailed) as caught:
        in_parts(range(2), 2, make)
    assert caught.value.code == "out_of_memory"
