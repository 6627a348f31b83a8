"""The model card of a run: `model_cards/TEMPLATE.md` with the run's own numbers, configuration and data."""

import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from accelerate import PartialState
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

import alit_hf
from alit_hf.data.sources import is_on_hub
from alit_hf.utils.shown_text import shown

from ..configuration import TrainingConfig, config_to_dict


TEMPLATE = Path(__file__).parents[2] / "model_cards" / "TEMPLATE.md"

_VALIDATION = "validation"
_LABELS = {"l1": "L1", "psnr": "PSNR", "lpips": "LPIPS", "r2": "R²", "spread": "spread", "ids": "different ids"}
_LPIPS_NETWORKS = {"vgg": "VGG16", "alex": "AlexNet"}
# They say what a run was; others say where it happened.
_PUBLIC_FIELDS = ("stage", "init_from", "base_from", "seed", "model", "loss", "data", "optimization", "logging")
_PASSING_VALUES = ("undecodable", "learning_rate")


@dataclass(kw_only=True)
class RunRecord:
    """
    What a run has measured so far.

    Args:
        steps: optimiser steps behind the weights.
        seconds: training time.
        undecodable: images that were skipped.
        values: the latest value of each logged scalar, with the step at which it was logged. Scores on held-out images
            are named `validation/SCORE` or `validation/SCORE/TOKENS`, those at other sizes than the model's begin as
            `DataConfig.validation_prefix` says.
    """

    steps: int
    seconds: float = 0.0
    undecodable: int = 0
    values: dict[str, tuple[float, int]] = field(default_factory=dict)

    def scores(self, prefix: str) -> dict[str, tuple[float, int]]:
        """The finite scores whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.values.items()
            if name.startswith(prefix) and math.isfinite(value[0])
        }

    @property
    def logged(self) -> dict[str, tuple[float, int]]:
        """The other scalars."""
        return {
            name: value
            for name, value in self.values.items()
            if not name.startswith(_VALIDATION) and name not in _PASSING_VALUES
        }


def public_config(config: TrainingConfig) -> str:
    """The configuration as YAML, without what is private to a machine; absolute paths are cut to their last part."""
    values = {name: value for name, value in config_to_dict(config).items() if name in _PUBLIC_FIELDS}
    return yaml.safe_dump(_without_folders(values), sort_keys=False, allow_unicode=True).strip()


def model_card(config: TrainingConfig, model_folder: Path, record: RunRecord) -> ModelCard:
    """
    The card of the model in a folder.

    Args:
        config: of the run.
        model_folder: holds `config.json` and safetensors files.
        record: what the run measured; the card's metadata list its scores, if any, as evaluation results.
    """
    fields = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    base = config.stage == "base"
    lengths = [] if base else [fields["tokens_per_rollout"] * (k + 1) for k in range(fields["max_rollouts"])]
    data = config.data
    scores, *at_other_sizes = (record.scores(data.validation_prefix(size)) for size in data.sizes)
    logged = record.logged
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="diffusers" if base else "transformers",
        pipeline_tag="image-feature-extraction",
        tags=["alit", "image-tokenization", "vqgan" if base else "adaptive-length", config.stage],
        datasets=_hub_id(*data.train),
        base_model=_hub_id(config.init_from),
        metrics=sorted({name.partition("/")[0] for name in scores}) or None,
        model_name=config.hub_model_id.partition("/")[2],
        eval_results=[_eval_result(config, name, value) for name, (value, _) in scores.items()] or None,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        model_id=config.hub_model_id,
        stage=config.stage,
        image_height=data.height_width[0],
        image_width=data.height_width[1],
        pixel_range=fields.get("_pixel_range", [0, 1]),
        lengths=lengths,
        quantize=fields.get("quantize", True),
        results=_results_table(scores),
        other_results={
            f"{width} × {height}": _results_table(of_size)
            for (height, width), of_size in zip(data.sizes[1:], at_other_sizes, strict=True)
        },
        scored_at=max((step for _, step in scores.values()), default=0),
        validation_images=data.validation_images,
        validation=_sources(data.validation, data.validation_config_name, data.validation_split),
        lpips=_LPIPS_NETWORKS[config.loss.perceptual_net] if any("lpips" in name for name in scores) else "",
        model_table=_model_table(fields, lengths, model_folder),
        init_from=_without_folders(config.init_from),
        base_from=_without_folders(config.base_from),
        data=_sources(data.train, data.config_name, data.split),
        images_seen=f"{record.steps * config.optimization.batch_size:,}",
        undecodable=record.undecodable,
        steps=record.steps,
        batch_size=config.optimization.batch_size,
        duration=_duration(record.seconds),
        hardware=_hardware(),
        software=_software(),
        logged=markdown_table(
            ["scalar", "value"], [[f"`{name}`", _number(value)] for name, (value, _) in logged.items()]
        ),
        logged_at=max((step for _, step in logged.values()), default=0),
        training_config=public_config(config),
    )


def _eval_result(config: TrainingConfig, name: str, value: float) -> EvalResult:
    metric, _, tokens = name.partition("/")
    hub_id = _hub_id(*config.data.validation)
    label = _LABELS.get(metric, metric)
    return EvalResult(
        task_type="image-feature-extraction",
        task_name="Image reconstruction",
        # For local files, the Hub's convention is the type of loader.
        dataset_type=hub_id or "imagefolder",
        dataset_name=hub_id or ", ".join(shown(Path(source).name) for source in config.data.validation),
        dataset_split=config.data.validation_split if hub_id else None,
        metric_type=metric,
        metric_name=f"{label} at {tokens} tokens" if tokens else label,
        metric_value=float(f"{value:.4g}"),
    )


def _results_table(scores: dict[str, tuple[float, int]]) -> str:
    rows: dict[str, dict[str, float]] = {}
    for name, (value, _) in scores.items():
        metric, _, tokens = name.partition("/")
        rows.setdefault(tokens, {})[metric] = value
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    by_length = any(rows)
    header = (["tokens"] if by_length else []) + [_LABELS.get(metric, metric) for metric in metrics]
    cells = [
        ([tokens] if by_length else []) + [_number(row[metric]) if metric in row else "" for metric in metrics]
        for tokens, row in rows.items()
    ]
    return markdown_table(header, cells)


def _model_table(fields: dict[str, Any], lengths: list[int], model_folder: Path) -> str:
    rows = [["parameters", f"{_num_parameters(model_folder) / 1e6:.2f} M"]]
    if not lengths:
        positions = 2 ** (len(fields["block_out_channels"]) - 1)
        rows.append(["pixels a code", f"{positions} × {positions}"])
        rows.append(["codebook", f"{fields['num_vq_embeddings']} codes of {fields['vq_embed_dim']} dimensions"])
    else:
        rows.append(["lengths in tokens", ", ".join(map(str, lengths))])
        if fields["quantize"]:
            bits = math.ceil(math.log2(fields["codebook_size"]))
            rows.append(["codebook", f"{fields['codebook_size']} codes of {fields['codebook_dim']} dimensions"])
            rows.append(["bytes at each length", ", ".join(str(math.ceil(length * bits / 8)) for length in lengths)])
        else:
            rows.append(["latent tokens", f"continuous, {fields['codebook_dim']} dimensions"])
        layers = f"{fields['num_encoder_layers']} + {fields['num_decoder_layers']}"
        rows.append(["width, layers, heads", f"{fields['hidden_size']}, {layers}, {fields['num_attention_heads']}"])
        rows.append(["base tokenizer", f"diffusers `{fields['base_tokenizer_config']['_class_name']}`"])
    return markdown_table(["property", "value"], rows)


def _num_parameters(model_folder: Path) -> int:
    count = 0
    for path in model_folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; empty if there are no rows."""
    lines = [header, ["---"] * len(header), *rows] if rows else []
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _hardware() -> str:
    state = PartialState()
    if state.device.type == "cuda":
        return f"{state.num_processes} × {torch.cuda.get_device_name(state.device)}"
    threads = torch.get_num_threads()
    return f"{state.num_processes} × {state.device.type} ({platform.machine()}, threads: {threads})"


def _software() -> str:
    return ", ".join(f"{module.__name__} {module.__version__}" for module in (alit_hf, torch, transformers, diffusers))


def _sources(sources: list[str], config_name: str, split: str) -> str:
    names = ", ".join(f"`{name}`" for name in _without_folders(sources))
    configuration = f", configuration `{config_name}`" if config_name else ""
    return f"{names}{configuration}, split `{split}`" if _hub_id(*sources) else names


def _hub_id(*sources: str) -> str | None:
    """The only source, if it is an id on the Hub and not a file, folder or pattern."""
    return sources[0] if is_on_hub(sources) else None


def _without_folders(value: Any) -> Any:
    """Nested values, with each absolute path cut to its last part."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    return shown(Path(value).name if Path(value).is_absolute() else value)
