"""`calotype submit`: a job from a file, from standard input, or from options."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, fail, out, print_json
from calotype.cli.gan_options import GanImageOptions, GanTrainOptions
from calotype.cli.options import spread


class _SpecGroup(TyperGroup):
    """Takes what is no sub-command as the file of a spec: `calotype submit job.json`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["file", *args])


app = typer.Typer(
    cls=_SpecGroup,
    help="Submit a job: `submit SPEC.json`, `submit -` from standard input, or by options as below.",
    no_args_is_help=True,
)

Adapters = Annotated[list[str] | None, typer.Option("--adapter", help="A LoRA, MODEL or MODEL:SCALE; may be repeated.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Drawn when not given.")]

#: Which model makes images when none is named.
_STARTERS = {"diffusion": "starter-diffusion", "gan": "starter-gan"}
#: Families that a contender may be said to be of: `gan:MODEL`.
_FAMILIES = ("diffusion", "gan")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a job of any kind may be given."""

    priority: Annotated[int | None, typer.Option(min=0, max=9, help="Higher first; 5 when not given.")] = None
    max_attempts: Annotated[int | None, typer.Option(min=1, max=20, help="Attempts; 3 when not given.")] = None
    deadline: Annotated[float | None, typer.Option(help="Seconds within which it must have started.")] = None
    timeout: Annotated[float | None, typer.Option(help="Seconds that one attempt may run.")] = None
    retain: Annotated[float | None, typer.Option(help="Seconds after its end that its files are kept.")] = None
    metadata: Annotated[list[str] | None, typer.Option("--metadata", "-m", help="KEY=VALUE; may be repeated.")] = None

    def fields(self) -> dict[str, Any]:
        """As the spec has them."""
        return _given(
            priority=self.priority,
            max_attempts=self.max_attempts,
            deadline_seconds=self.deadline,
            timeout_seconds=self.timeout,
            retain_seconds=self.retain,
            metadata=dict(_pair(text) for text in self.metadata) if self.metadata else None,
        )


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Where a job goes, and what is done with it there."""

    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for its end with a progress bar.")] = False
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download its artifacts here (waits).", show_default=False)
    ] = None
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and spec give the same job.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Quote the wait and the cost; submit nothing.")] = False
    url: Url = None
    api_key: ApiKey = None
    as_json: AsJson = False

    def submit(self, spec: dict[str, Any]) -> None:
        """Submits it, and says what became of it."""
        from calotype.cli.explain import quote
        from calotype.cli.follow import follow, tell_outcome

        with connect(self.url, self.api_key) as client:
            if self.dry_run:
                quoted = client.quote(spec)
                print_json(quoted) if self.as_json else out().print(quote(quoted))
                return
            job = client.submit(spec, idempotency_key=self.idempotency_key)
            if self.wait or self.output is not None:
                tell_outcome(client, follow(client, job["id"]), output=self.output, as_json=self.as_json)
                return
        if self.as_json:
            print_json(job)
        else:
            out().print(job["id"], markup=False)
            err().print(f"{job['state']}; follow it with: calotype wait {job['id']}", markup=False)


@app.command("file")
@spread
def submit_file(
    *,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A JSON file, or - for standard input.")],
    submission: Submission,
) -> None:
    """Submit the spec in a file. The word `file` may be left out."""
    submission.submit(_read(spec))


@app.command()
@spread
def generate(
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What to show; a GAN takes none.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or name@version. When not given: starter-diffusion, or starter-gan.")
    ] = None,
    family: Annotated[str, typer.Option(help="The model's family: diffusion or gan.")] = "diffusion",
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="How many.")] = 1,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own when not given.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own when not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    seed: Seed = None,
    scheduler: Annotated[str | None, typer.Option(help="flow-match-euler or flow-match-heun.")] = None,
    init_image: Annotated[str | None, typer.Option(help="Start from `ds_…/file.png` or `JOB/artifact.png`.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of it to replace, up to 1.")] = None,
    adapter: Adapters = None,
    gan: GanImageOptions,
    cache: Annotated[
        str | None, typer.Option(help="use, any_seed or bypass: whether earlier images may answer.")
    ] = None,
    options: JobOptions,
    submission: Submission,
) -> None:
    """Make images: from a prompt, or from a GAN."""
    if family == "diffusion" and prompt is None:
        raise typer.BadParameter("a diffusion model needs one", param_hint="--prompt")
    asked = _given(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_images=num_images,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        scheduler=scheduler,
        init_image=init_image,
        strength=strength,
        adapters=[_adapter(text) for text in adapter] if adapter else None,
        **gan.asked(),
    )
    spec = {
        "kind": "generate",
        "family": family,
        "model": model or _STARTERS.get(family),
        "input": asked,
        **_given(cache=cache),
        **options.fields(),
    }
    submission.submit(spec)


@app.command()
@spread
def train(
    *,
    dataset: Annotated[str, typer.Option(help="Id or name of the images.", show_default=False)],
    output_model: Annotated[str, typer.Option(help="Name of the result.", show_default=False)],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; a GAN takes --kimg.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What to start from. When not given: starter-diffusion; a GAN starts from random weights."),
    ] = None,
    family: Annotated[str, typer.Option(help="The model's family: diffusion or gan.")] = "diffusion",
    label: Annotated[str | None, typer.Option(help="Only images with this label.")] = None,
    method: Annotated[str | None, typer.Option(help="lora or full; lora when not given.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="1e-4 when not given.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels; the model's own when not given.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    validation_prompt: Annotated[
        list[str] | None, typer.Option(help="Show an image of this at the end; may be repeated.")
    ] = None,
    seed: Seed = None,
    gan: GanTrainOptions,
    options: JobOptions,
    submission: Submission,
) -> None:
    """Train a model on your images. What has no option here goes into a file."""
    if family == "diffusion":
        model = model or _STARTERS[family]
        if steps is None:
            raise typer.BadParameter("training a diffusion model needs it", param_hint="--steps")
    asked = _given(
        dataset=dataset,
        label=label,
        method=method,
        rank=rank,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        resolution=resolution,
        mixed_precision=mixed_precision,
        gradient_checkpointing=gradient_checkpointing,
        checkpoint_every=checkpoint_every,
        validation_prompts=validation_prompt or None,
        seed=seed,
        output_model=output_model,
        **gan.asked(),
    )
    spec = {"kind": "train", "family": family, **_given(model=model), "input": asked, **options.fields()}
    submission.submit(spec)


@app.command()
@spread
def benchmark(
    *,
    contender: Annotated[
        list[str],
        typer.Option(help="MODEL, MODEL+ADAPTER with a LoRA, gan:MODEL of another family; repeat.", show_default=False),
    ],
    dataset: Annotated[str, typer.Option(help="Held-out images to compare with.", show_default=False)],
    family: Annotated[str, typer.Option(help="The family of contenders that do not say theirs.")] = "diffusion",
    num_samples: Annotated[int | None, typer.Option("--num-samples", "-n", help="Images of each.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Measure at this size; repeat.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="latency, throughput, memory, fd, kid; repeat.")] = None,
    gpu_hour_usd: Annotated[float | None, typer.Option(help="Price of a device-hour.")] = None,
    seed: Seed = None,
    options: JobOptions,
    submission: Submission,
) -> None:
    """Measure models against your own images."""
    asked = _given(
        contenders=[_contender(family, text) for text in contender],
        dataset=dataset,
        num_samples=num_samples,
        batch_sizes=batch_size or None,
        metrics=metric or None,
        seed=seed,
        gpu_hour_usd=gpu_hour_usd,
    )
    submission.submit({"kind": "benchmark", "input": asked, **options.fields()})


def _read(spec: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if spec == "-" else Path(spec).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        fail(
            f"{spec} could not be read: {reason}.",
            "Give a JSON file, - for standard input, or: generate, train, benchmark (--help shows how).",
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        fail(f"{spec} is not JSON: {exc.msg} in line {exc.lineno}, column {exc.colno}.")
    if not isinstance(value, dict):
        fail(f"{spec} holds no JSON object.", 'A job looks like {"kind": "generate", …}; see docs/api.md.')
    return value


def _given(**fields: Any) -> dict[str, Any]:
    """Only what was asked for: the server knows the defaults."""
    return {name: value for name, value in fields.items() if value is not None}


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--metadata")
    return key, value


def _adapter(text: str) -> dict[str, Any]:
    model, separator, scale = text.partition(":")
    if not separator:
        return {"model": model}
    try:
        return {"model": model, "scale": float(scale)}
    except ValueError as exc:
        raise typer.BadParameter(f"{scale!r} is not a number", param_hint="--adapter") from exc


def _contender(family: str, text: str) -> dict[str, Any]:
    prefix, separator, rest = text.partition(":")
    if separator and prefix in _FAMILIES:
        family, text = prefix, rest
    model, *adapters = text.split("+")
    contender: dict[str, Any] = {"family": family, "model": model}
    if adapters:
        contender |= {"name": text, "adapters": [_adapter(adapter) for adapter in adapters]}
    return contender
