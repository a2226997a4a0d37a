"""Pretrain the text side: a BPE vocabulary, two small CLIP encoders, and a T5 encoder that says nothing.

    python -m starter.recipe.text --work DIR --minutes 1.5

The two CLIP encoders learn to read colours, shapes and titles out of captions and are frozen after that. The SD3
pipeline also wants a T5: a tiny one with a zeroed final norm is shipped, whose output is exactly zero, so that
`StableDiffusion3Pipeline.from_pretrained(folder)` works without further arguments.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import starter
from starter.colours import COLOURS
from starter.recipe.captions import Words, captions, describe
from starter.recipe.data import load_images, load_rows

VOCABULARY: Final = 2200
START, END = "<|startoftext|>", "<|endoftext|>"

#: Words for shapes, as `captions.shape_words` gives them; one output of the pretraining head each.
SHAPES: Final = ("solid", "thin", "wide", "tall", "round", "square", "diamond", "hexagon")

#: Width of each CLIP encoder; both side by side are as wide as the T5, the transformer's joint width.
WIDTH: Final = 64


def main() -> None:
    """Train the vocabulary and the encoders and save all six text components."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1.5)
    options = parser.parse_args()
    words = list(described())
    tokenizer = new_tokenizer([text for one in words for text in captions(one)])
    for number, name in enumerate(("text_encoder", "text_encoder_2")):
        torch.manual_seed(number)
        encoder = new_encoder(tokenizer)
        fit(encoder, tokenizer, words, minutes=options.minutes / 2)
        encoder.save_pretrained(options.work / name)
        tokenizer.save_pretrained(options.work / name.replace("text_encoder", "tokenizer"))
    silent_t5().save_pretrained(options.work / "text_encoder_3")
    t5_tokenizer().save_pretrained(options.work / "tokenizer_3")


def described() -> Iterator[Words]:
    """The words of every training logo."""
    path = starter.train_dataset()
    for row, image in zip(load_rows(path), load_images(path), strict=True):
        yield describe(image, row["title"])


def new_tokenizer(corpus: list[str]) -> CLIPTokenizer:
    """A lower-case BPE in CLIP's form, padded and cut to the starter's text length."""
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    ends = [f"{letter} {letter}x" for letter in letters]
    bpe.train_from_iterator([*corpus, *ends], trainer)
    parts = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in parts["merges"]]
    return CLIPTokenizer(
        vocab=parts["vocab"],
        merges=merges,
        model_max_length=starter.CLIP_TOKENS,
    )


def new_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained CLIP text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=starter.CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def fit(encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, words: list[Words], *, minutes: float) -> None:
    """Teach an encoder to tell colours and shapes from captions.

    Both outputs that the pipeline uses are taught: the pooled one, and the mean of the states before the last layer.
    """
    texts = [captions(one) for one in words]
    ids = torch.stack([_token_ids(tokenizer, variants) for variants in texts])
    goals = [
        torch.stack([_targets(text, one) for text in variants]) for one, variants in zip(words, texts, strict=True)
    ]
    targets = torch.stack(goals)
    heads = nn.ModuleList([nn.Linear(WIDTH, targets.shape[-1]) for _ in range(2)])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    started, step = time.monotonic(), 0
    while time.monotonic() - started < 60 * minutes:
        rows, columns = torch.randint(len(ids), (256,)), torch.randint(ids.shape[1], (256,))
        output = encoder(ids[rows, columns], output_hidden_states=True)
        read = heads[0](output.text_embeds), heads[1](output.hidden_states[-2].mean(dim=1))
        losses = [nn.functional.binary_cross_entropy_with_logits(one, targets[rows, columns]) for one in read]
        sum(losses, torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"step {step} losses {[round(loss.item(), 4) for loss in losses]}", flush=True)


def silent_t5() -> T5EncoderModel:
    """A T5 encoder whose output is zero for every token."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(t5_tokenizer()), d_model=2 * WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder


def t5_tokenizer() -> Any:
    """A tokenizer that reads every text as empty, since the encoder behind it does not listen, and ends it."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))  # noqa: S106
    words.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>"}
    new: Any = PreTrainedTokenizerFast
    return new(tokenizer_object=words, model_max_length=starter.T5_TOKENS, **marks)


def _token_ids(tokenizer: CLIPTokenizer, texts: tuple[str, ...]) -> Tensor:
    found = tokenizer(
        list(texts), padding="max_length", max_length=starter.CLIP_TOKENS, truncation=True, return_tensors="pt"
    )
    ids: Tensor = found.input_ids
    return ids


def _targets(text: str, words: Words) -> Tensor:
    """What a caption says: first colour, second colour, shapes, as zeros and ones."""
    said = text.replace(",", "").split()
    first = [float(name == words.colours[0]) for name in COLOURS]
    second = [float(name in words.colours[1:] and name in said) for name in COLOURS]
    return torch.tensor([*first, *second, *(float(shape in said) for shape in SHAPES)])


if __name__ == "__main__":
    main()
