"""One pass over the images: every length, adaptive lengths, the base tokenizer and the yardsticks."""

import hashlib
from collections import defaultdict
from contextlib import ExitStack, closing

import torch
from PIL import Image

from alit_hf.codes.picture_codes import to_picture
from alit_hf.codes.rollout_pictures import payload_bytes
from alit_hf.codes.rollout_progress import rollout_progress
from alit_hf.data.images import Images
from alit_hf.losses.codebook import code_counts
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.model.selection import l1, score_images
from alit_hf.utils.prefetch import map_batches
from alit_hf.utils.processes import Processes
from alit_hf.utils.progress import ProgressBar

from .base_pictures import base_pictures
from .description import check_crop
from .frechet import check_num_images
from .lengths import code_lengths
from .pixels import to_pixels
from .results import build_results
from .saved_pictures import ORIGINALS, SavedPictures, reconstructions_name, saved_pictures
from .scores import ImageScorer
from .settings import EvaluationSettings, SettingsError
from .speed import measure_speed
from .tally import FrechetDistances, ImageRecord
from .yardsticks import CODECS, fitting_files, smallest_file, thumbnail, thumbnail_size


def evaluate_model(
    model: ALITModel,
    processor: ALITImageProcessor,
    images: Images,
    settings: EvaluationSettings,
    processes: Processes | None = None,
) -> dict:
    """
    Measures a model on images.

    Every score is the mean over images of the score of each picture, clamped to [0, 1] as a viewer would show it.
    Lengths for a threshold are chosen as in `ALITModel.encode(threshold=)`, by the L1 of the pictures before clamping.
    All numbers except images per second are reproducible on the same machine; another batch size or number of
    processes changes them only by rounding.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        processor ([`ALITImageProcessor`]): brings images to the model's size; every yardstick gets what it gives.
        images ([`Images`]): from `open_images`.
        settings ([`EvaluationSettings`])
        processes ([`Processes`], *optional*): the processes that share the images. Defaults to this one alone.

    Returns:
        the results, on every process, in the form that `json.dump` takes. See `build_results`.

    Raises:
        `SettingsError`: before any work, for a processor that does not fit the model, pictures too small to be
            scored, and reconstructions that cannot be saved.
        `ValueError`: before any work, for too few images for a Fréchet distance; at the end, if no image could be
            decoded; and for a model whose pictures have NaN.
        `OSError`: if a reconstruction cannot be written.
    """
    processes = processes or Processes()
    pass_ = _Pass(model, processor, settings)
    num_images = len(images) if settings.limit is None else min(len(images), settings.limit)
    if settings.feature_network is not None:
        check_num_images(num_images)
    with ExitStack() as stack:
        if settings.reconstructions is not None:
            lengths = _saved_lengths(model, settings)
            size = model.config.image_height_width
            pass_.pictures = stack.enter_context(
                saved_pictures(settings.reconstructions, lengths, num_images, size, processes)
            )
        return _evaluate(pass_, images, settings, num_images, processes)


def _evaluate(
    pass_: "_Pass", images: Images, settings: EvaluationSettings, num_images: int, processes: Processes
) -> dict:
    """The pass over this process's images, and the results of all processes."""
    model, processor = pass_.model, pass_.processor
    undecodable, speed = [], None
    indices = range(processes.rank, num_images, processes.count)
    label = "evaluating" if processes.count == 1 else f"evaluating, process 0 of {processes.count}"

    def read(index: int) -> torch.Tensor | Exception:
        try:
            image = images.read(index)
        except (OSError, ValueError) as error:
            return error
        return to_picture(image, processor).pixel_values

    size = settings.batch_size
    batches = (indices[start : start + size] for start in range(0, len(indices), size))
    with (
        closing(map_batches(read, batches, size, settings.num_workers)) as read_batches,
        ProgressBar(total=len(indices), desc=label) as progress,
    ):
        for batch, contents in read_batches:
            pixel_values = {}
            for index, image in zip(batch, contents, strict=True):
                if isinstance(image, Exception):
                    undecodable.append(images.describe_failure(index, image))
                else:
                    pixel_values[index] = image
            if pixel_values:
                stacked = torch.stack(list(pixel_values.values()))
                with rollout_progress(model, progress, len(batch)):
                    pass_.add(list(pixel_values), stacked)
                # The threads have long decoded the next batch and stand still.
                if speed is None and processes.rank == 0:
                    speed = measure_speed(model, stacked.to(model.device), settings.thresholds)
            progress.update(len(batch))

    # All processes get here, even one without images: the Fréchet distances need every one of them.
    records = sorted(processes.gather(pass_.records), key=lambda record: record.index)
    undecodable = sorted(processes.gather(undecodable), key=lambda image: image["index"])
    if not records:
        raise ValueError(f"{', '.join(images.sources)}: none of {num_images} images can be decoded")
    total_counts = defaultdict(int)
    for own_counts in processes.gather([pass_.code_counts]):
        for variant, counts in own_counts.items():
            total_counts[variant] += counts
    speed = next(measured for measured in processes.gather([speed]) if measured is not None)
    return build_results(
        model=model,
        processor=processor,
        images=images,
        settings=settings,
        num_processes=processes.count,
        records=records,
        undecodable=undecodable,
        code_counts=total_counts,
        frechet=pass_.frechet.compute() if pass_.frechet is not None else {},
        speed=speed,
        thumbnail_sizes=pass_.thumbnail_sizes,
    )


def _saved_lengths(model: ALITModel, settings: EvaluationSettings) -> list[int]:
    lengths = code_lengths(model.config)
    wanted = lengths if settings.reconstruction_lengths is None else settings.reconstruction_lengths
    if unknown := [length for length in wanted if length not in lengths]:
        raise SettingsError(
            f"there are no reconstructions of {unknown[0]} tokens, the model has {', '.join(map(str, lengths))}"
        )
    return list(wanted)


class _Pass:
    """The pass of one process over its images."""

    def __init__(self, model: ALITModel, processor: ALITImageProcessor, settings: EvaluationSettings):
        config = model.config
        check_crop(model, processor)
        height, width = config.image_height_width
        self.model = model
        self.processor = processor
        self.thresholds = settings.thresholds
        self.scorer = ImageScorer(settings.lpips_networks, model.device)
        if min(height, width) < self.scorer.min_size:
            raise SettingsError(
                f"pictures of {width} x {height} pixels are too small to be scored, {self.scorer.min_size} are needed"
                + (" (leave out LPIPS)" if settings.lpips_networks else "")
            )
        lengths = code_lengths(config)
        self.budgets = {length: payload_bytes(config, length) for length in lengths} if config.quantize else {}
        sizes = {length: thumbnail_size(width, height, num_bytes) for length, num_bytes in self.budgets.items()}
        self.thumbnail_sizes = {length: size for length, size in sizes.items() if size is not None}
        self.codecs = {name: codec for name, codec in CODECS.items() if codec.is_available}
        self.records: list[ImageRecord] = []
        self.code_counts: dict[str, torch.Tensor] = defaultdict(int)
        self.pictures: SavedPictures | None = None
        self.features = settings.feature_network
        self.frechet = None
        if self.features is not None:
            self.features.to(model.device)
            variants = [
                *(f"lengths/{length}" for length in lengths),
                *(f"adaptive/{number}" for number in range(len(self.thresholds))),
                "base",
                *(f"thumbnail/{length}" for length in self.thumbnail_sizes),
                *self.codecs,
            ]
            self.frechet = FrechetDistances(self.features.num_features, variants, model.device)

    @torch.inference_mode()
    def add(self, indices: list[int], pixel_values: torch.Tensor) -> None:
        """Measures the images with these indices, pixels `(B, 3, H, W)` in [0, 1]."""
        pictures = self.processor.postprocess(pixel_values)
        if self.pictures is not None:
            self.pictures.add(ORIGINALS, indices, pictures)
        records = [
            ImageRecord(index, hashlib.sha256(picture.tobytes()).digest(), criterion=[])
            for index, picture in zip(indices, pictures, strict=True)
        ]
        self.records += records
        original = pixel_values.to(self.model.device)
        # The fastest algorithms of cuDNN are neither repeatable nor exact.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            original_features = None if self.features is None else self.features(original)
            self._add_model(records, original, original_features)
            self._add_yardsticks(records, pictures, original, original_features)

    def _add_model(
        self, records: list[ImageRecord], original: torch.Tensor, original_features: torch.Tensor | None
    ) -> None:
        config = self.model.config
        waiting = torch.ones(len(self.thresholds), len(records), dtype=torch.bool, device=original.device)
        thresholds = torch.tensor(self.thresholds, dtype=torch.float32, device=original.device).unsqueeze(1)
        # As in `alit encode`: only a model with dynamic halting draws random numbers.
        generator = torch.Generator(self.model.device).manual_seed(0)
        for rollout in self.model.rollouts(original, generator=generator):
            length = rollout.num_tokens
            variant = f"lengths/{length}"
            criterion = score_images(l1, rollout.reconstruction, original)
            for record, score in zip(records, criterion.tolist(), strict=True):
                record.criterion.append(score)
            features = self._score(variant, records, rollout.reconstruction, original, original_features)
            folder = reconstructions_name(length)
            if self.pictures is not None and folder in self.pictures.names:
                made = self.processor.postprocess(rollout.reconstruction)
                self.pictures.add(folder, [record.index for record in records], made)
            # The images that end here for each threshold, as in `ALITModel.encode`.
            leaving = waiting & ((criterion < thresholds) | (length == config.max_tokens))
            waiting &= ~leaving
            if rollout.token_ids is not None:
                self.code_counts[variant] += code_counts(rollout.token_ids, config.codebook_size).cpu()
            for number, rows in enumerate(leaving):
                if rollout.token_ids is not None:
                    counts = code_counts(rollout.token_ids[rows], config.codebook_size)
                    self.code_counts[f"adaptive/{number}"] += counts.cpu()
                if features is not None and rows.any():
                    self.frechet.add(f"adaptive/{number}", original_features[rows], features[rows])
        reconstruction, ids = base_pictures(self.model, original)
        self._score("base", records, reconstruction, original, original_features)
        if ids is not None:
            self.code_counts["base"] += code_counts(ids, config.base_output_dim).cpu()

    def _add_yardsticks(
        self,
        records: list[ImageRecord],
        pictures: list[Image.Image],
        original: torch.Tensor,
        original_features: torch.Tensor | None,
    ) -> None:
        def score(variant: str, made: list[Image.Image]) -> None:
            self._score(variant, records, to_pixels(made).to(original.device), original, original_features)

        for length, size in self.thumbnail_sizes.items():
            score(f"thumbnail/{length}", [thumbnail(picture, size) for picture in pictures])
        for name, codec in self.codecs.items():
            made = [smallest_file(picture, codec) for picture in pictures]
            for record, (_, num_bytes) in zip(records, made, strict=True):
                record.file_bytes[name] = num_bytes
            score(name, [picture for picture, _ in made])
            if self.budgets:
                self._add_fitting(records, pictures, original, name)

    def _add_fitting(
        self, records: list[ImageRecord], pictures: list[Image.Image], original: torch.Tensor, name: str
    ) -> None:
        """Files of a codec as small as each length; a picture that no file is small enough for has no score there."""
        made = [fitting_files(picture, self.codecs[name], list(self.budgets.values())) for picture in pictures]
        for length, files in zip(self.budgets, zip(*made, strict=True), strict=True):
            variant = f"{name}/{length}"
            if not any(files):
                continue
            # Pictures without a file stand for themselves, and their scores are dropped.
            shown = [file[0] if file else picture for file, picture in zip(files, pictures, strict=True)]
            scores = self.scorer(to_pixels(shown).to(original.device), original)
            for row, (record, file) in enumerate(zip(records, files, strict=True)):
                if file:
                    record.file_bytes[variant] = file[1]
                    record.scores[variant] = {key: values[row].item() for key, values in scores.items()}

    def _score(
        self,
        variant: str,
        records: list[ImageRecord],
        made: torch.Tensor,
        original: torch.Tensor,
        original_features: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Adds a variant's scores to the records; returns its features if there is a network for them."""
        scores = {name: values.tolist() for name, values in self.scorer(made, original).items()}
        for row, record in enumerate(records):
            record.scores[variant] = {name: values[row] for name, values in scores.items()}
        if self.features is None:
            return None
        features = self.features(made.float().clamp(0, 1))
        self.frechet.add(variant, original_features, features)
        return features


__all__ = ["Processes", "evaluate_model"]
