"""
A language model of pictures: trains a small Llama on a data set of tokens, has it write codes, and decodes them.

    alit tokenize photos/ --output tokens/ --threshold 0.1
    python examples/generate.py tokens/ -o generated.png                        # lengths that the model chooses
    python examples/generate.py tokens/ -o generated.png --num-tokens 32 256    # and lengths that you choose
    python examples/generate.py tokens/ -o generated.png --label-column label --labels cat dog

Writes a figure: a row of pictures at lengths that the model chose, and one for each length asked for. Prints how often
the model chooses each length.
"""

import argparse
import os
import random
from collections import Counter
from pathlib import Path

import datasets
import torch
import transformers
from matplotlib.backend_bases import FigureCanvasBase
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from alit_hf import ALITImageProcessor, ALITModel, CodeLogitsProcessor, SequenceVocabulary, pretrained_path
from alit_hf.codes.figure import Panel, draw_panels, save_figure
from alit_hf.token_datasets import TokenDecoder
from alit_hf.utils.option_types import positive_integer


BATCH_SIZE = 16
LEARNING_RATE = 1e-3
NUM_HEADS = 4
PICTURES_PER_ROW = 8


def class_names(rows: datasets.Dataset, column: str | None) -> list[str | None]:
    """The class of each row by its name; not every row must have one."""
    if column is None:
        return [None] * len(rows)
    if column not in rows.column_names:
        raise ValueError(f"--label-column is {column!r}, it must be one of {rows.column_names}")
    feature = rows.features[column]
    to_name = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    return [None if label is None else to_name(label) for label in rows[column]]


def train(vocabulary: SequenceVocabulary, sequences: list[list[int]], options: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary.vocab_size,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=NUM_HEADS,
        max_position_embeddings=2 * vocabulary.max_length,  # with room for a prompt
    )
    model = LlamaForCausalLM(config).to(options.device)
    batches = torch.utils.data.DataLoader(sequences, BATCH_SIZE, shuffle=True, collate_fn=vocabulary.pad)
    num_steps = options.epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps, pct_start=0.1)
    with tqdm(total=num_steps, desc="training", unit="step") as progress:
        for _ in range(options.epochs):
            for batch in batches:
                loss = model(**batch.to(options.device)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.set_postfix(loss=f"{loss.item():.2f}")
                progress.update()
    return model.eval()


def write(model: LlamaForCausalLM, vocabulary: SequenceVocabulary, prompts: list[list[int]]) -> torch.Tensor:
    """A code for each prompt: ids `(B, T)`, padded with -1."""
    sequences = model.generate(
        **vocabulary.pad(prompts, padding_side="left").to(model.device),
        logits_processor=[CodeLogitsProcessor(vocabulary)],
        max_new_tokens=vocabulary.max_length,
        do_sample=True,
        top_k=0,
    )
    return vocabulary.from_sequence(sequences)


def print_lengths(of_data: Counter, of_model: Counter) -> None:
    print("tokens   data  model")
    shares = [[counts[n] / counts.total() for n in sorted(of_data | of_model)] for counts in (of_data, of_model)]
    for num_tokens, *both in zip(sorted(of_data | of_model), *shares, strict=True):
        print(f"{num_tokens:6}" + "".join(f"{share:7.1%}" for share in both))
    distance = sum(abs(data - model) for data, model in zip(*shares, strict=True)) / 2
    print(f"total variation distance of {of_model.total()} samples: {distance:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", metavar="TOKENS", help="what `alit tokenize` wrote: a folder or a Hub id")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="figure, such as a .png")
    parser.add_argument("--model", default=pretrained_path(), help="the ALIT model of the tokens")
    parser.add_argument("--num-tokens", metavar="N", type=int, nargs="+", default=[], help="lengths to ask for")
    parser.add_argument("--label-column", metavar="COLUMN", help="column of classes to train with")
    parser.add_argument("--labels", metavar="NAME", nargs="+", help="classes to ask for (default: the most frequent)")
    parser.add_argument(
        "--samples", type=positive_integer, default=200, help="codes to count lengths of (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive_integer, default=10, help="default: %(default)s")
    parser.add_argument(
        "--hidden-size", type=positive_integer, default=192, help="of the Llama (default: %(default)s)"
    )
    parser.add_argument("--num-layers", type=positive_integer, default=3, help="of the Llama (default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()

    transformers.set_seed(options.seed)
    try:
        if options.output.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
            raise ValueError(f"{options.output} is no file name of a figure, such as generated.png")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if options.output.is_dir() or not os.access(options.output.parent, os.W_OK | os.X_OK):
            raise ValueError(f"{options.output} cannot be written")
        if options.hidden_size % (2 * NUM_HEADS):
            raise ValueError(f"--hidden-size is {options.hidden_size}, it must be a multiple of {2 * NUM_HEADS}")
        processor = ALITImageProcessor.from_pretrained(options.model)
        tokenizer = ALITModel.from_pretrained(options.model).eval().to(options.device)
        split = TokenDecoder(options.tokens, tokenizer, processor).info.output_split
        rows = datasets.load_dataset(options.tokens, split=split)
        labels = class_names(rows, options.label_column)
        # Classes are ids in front of the vocabulary, as words would be.
        classes = [label for label, _ in Counter(labels).most_common() if label is not None]
        vocabulary = SequenceVocabulary.from_config(tokenizer.config, offset=len(classes))
        asked = options.labels or classes[:PICTURES_PER_ROW] or [None]
        if unknown := set(asked) - {None, *classes}:
            raise ValueError(f"--labels has {sorted(unknown)}, the classes are {classes}")
        beginnings = [vocabulary.prompt(num_tokens) for num_tokens in (None, *options.num_tokens)]
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))

    def prompt(label: str | None, beginning: list[int]) -> list[int]:
        return beginning if label is None else [classes.index(label), *beginning]

    codes = map(vocabulary.to_sequence, rows["token_ids"])
    model = train(vocabulary, [prompt(*code) for code in zip(labels, codes, strict=True)], options)

    samples = [prompt(label, vocabulary.prompt()) for label in random.choices(labels, k=options.samples)]
    lengths = (write(model, vocabulary, samples) >= 0).sum(dim=1)
    print_lengths(Counter(rows["num_tokens"]), Counter(lengths.tolist()))

    shown = [asked[column % len(asked)] for column in range(PICTURES_PER_ROW)]
    token_ids = write(model, vocabulary, [prompt(label, beginning) for beginning in beginnings for label in shown])
    with torch.inference_mode():
        pictures = processor.postprocess(tokenizer.decode(token_ids).pixel_values)
    lengths = (token_ids >= 0).sum(dim=1).tolist()
    texts = [[] if label is None else [label] for label in shown] * len(beginnings)
    panels = [Panel(picture, f"{n} tokens", text) for picture, n, text in zip(pictures, lengths, texts, strict=True)]
    figure = [panels[first : first + PICTURES_PER_ROW] for first in range(0, len(panels), PICTURES_PER_ROW)]
    save_figure(draw_panels(figure, "First row: lengths that the language model chose."), options.output)


if __name__ == "__main__":
    main()
