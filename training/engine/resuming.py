"""Where a run starts: from scratch, or from which checkpoint and with which changes of its configuration."""

import logging
from pathlib import Path

import yaml

from ..configuration import Change, TrainingConfig, changes
from .checkpointing import CONFIG_FILE, checkpoints, damage_of


logger = logging.getLogger(__name__)


def find_start(config: TrainingConfig) -> tuple[Path | None, list[Change]]:
    """
    The checkpoint that the run continues from, None if it starts from scratch, and what the configuration changes. If
    the latest checkpoint cannot be read, it is the one before.

    Raises:
        `ValueError`: for `resume` that is not a checkpoint, or one that cannot be read; if none of the run's
            checkpoints can be read; if `resume` is empty but `output_dir` has checkpoints, which the new run would
            overwrite one by one; and for whatever `permitted_changes` refuses.
    """
    checkpoint = _find_checkpoint(config)
    return checkpoint, [] if checkpoint is None else permitted_changes(config, checkpoint)


def _find_checkpoint(config: TrainingConfig) -> Path | None:
    resume, output_dir = config.resume, Path(config.output_dir)
    existing = checkpoints(output_dir)
    if resume == "latest":
        return _latest(existing) if existing else None
    if resume:
        if not Path(resume).is_dir():
            raise ValueError(f"`resume` is {resume!r}, it must be 'latest' or the folder of a checkpoint.")
        if damage := damage_of(Path(resume)):
            raise ValueError(f"`resume` is {resume!r}, it must be a checkpoint that can be read ({damage}).")
        return Path(resume)
    if existing:
        raise ValueError(
            f"`output_dir` is {str(output_dir)!r}, which has checkpoints of another run: continue it by `--resume "
            "latest`, or take another folder."
        )
    return None


def _latest(existing: list[Path]) -> Path:
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(existing):
        damage = damage_of(checkpoint)
        if damage is None:
            for other, why in damaged.items():
                logger.warning("%s cannot be read (%s), going on from %s instead", other, why, checkpoint)
            return checkpoint
        damaged[checkpoint] = damage
    listed = "; ".join(f"{checkpoint} ({why})" for checkpoint, why in damaged.items())
    raise ValueError(f"`resume` is 'latest', but no checkpoint can be read: {listed}. Take another `output_dir`.")


def permitted_changes(config: TrainingConfig, folder: Path) -> list[Change]:
    """
    What the configuration changes in comparison with the run that it continues.

    Args:
        folder: of the run, or a checkpoint.

    Raises:
        `ValueError`: if one of the fields may not change, or the folder has no configuration.
    """
    # Checkpoints of earlier versions have no configuration of their own.
    places = [place for place in (folder, folder.parent) if (place / CONFIG_FILE).is_file()]
    if not places:
        raise ValueError(f"{folder} has no {CONFIG_FILE}, so it cannot be continued: put the one of its run there.")
    before = yaml.safe_load((places[0] / CONFIG_FILE).read_text(encoding="utf-8"))
    # How a run is resumed is none of its settings.
    found = list(changes(before | {"resume": config.resume}, config))
    refused = "; ".join(
        f"`{change.name}` is {change.now!r}, it must be {change.before!r}" for change in found if not change.is_allowed
    )
    if refused:
        raise ValueError(
            f"{refused}, as in the run that is to be continued, {folder}. For another run choose another `output_dir`."
        )
    return found
