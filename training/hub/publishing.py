"""Pushes what a run writes to the Hub in the background, so that nothing that happens there delays the run."""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars

from alit_hf.utils.hub_repository import MODEL_FILES, WEIGHT_FILES, open_repository

from ..configuration import PICTURES_FOLDER, TrainingConfig
from .model_card import RunRecord, model_card, public_config
from .scalar_logs import scalar_records


logger = logging.getLogger(__name__)

FOLDER = "hub"
"""Folder inside the run's, with copies of what is still to be pushed and of what could not be."""

RETRY_DELAYS = (5.0, 20.0, 60.0, 180.0)
"""Seconds between attempts to push. The Hub's client retries single requests itself, for half a minute."""

# The client would wait forever for a server that died silently.
_LOGIN_LIMIT = 60.0
_ATTEMPT_LIMIT = 3600.0
_LONGEST_DELAY = 900.0
# Client errors that are temporary.
_PASSING_STATUS = (408, 409, 412, 425, 429)
_CODE_FILES = "*.py"
_CARD_FILE, _CONFIG_FILE = "README.md", "training_config.yaml"


class Publisher:
    """
    A run's pushes to the Hub. Create it on the main process only.

    Each push is one commit: weights, configuration, processor and code as `save_pretrained` wrote them, the model card
    as README.md, `training_config.yaml`, the scalars of TensorBoard logs under `logs/STAGE`, and with `hub_pictures`
    the grids of pictures under `pictures/STAGE`; nothing else. What goes where is logged at construction. Once the
    login is checked, no method raises: failures are retried, logged, and summed up by `finish`.

    Args:
        config: of the run, with `push_to_hub` on.

    Raises:
        `ValueError`: without a login, with one that the Hub refuses, or that may not write to `hub_model_id`.
            A Hub that cannot be reached is not an error, as it may be back before the first push.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.output_dir = Path(config.output_dir)
        self._api = HfApi()
        self._logs, self._pictures = f"logs/{config.stage}", f"pictures/{config.stage}"
        self._pending: int | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._pushed: dict[int, str] = {}
        self._failed: dict[int, str] = {}
        disable_progress_bars()  # they would break the run's own
        self._check_login()
        # A daemon, so that it does not keep a failed run from ending.
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def push(self, model_folder: Path, record: RunRecord) -> None:
        """
        Copies a folder that `from_pretrained` loads and returns; the copy is pushed in the background. It replaces an
        earlier push that is still waiting.

        Args:
            record: what the run measured, for the card.
        """
        steps = record.steps
        try:
            self._set_aside(model_folder, record)
        except Exception as error:
            # A full disk, for example. Whatever it is, training goes on.
            logger.exception("Hub: step %d could not be set aside and is not pushed", steps)
            self._failed[steps] = _described(error)
            shutil.rmtree(self._folder(steps), ignore_errors=True)
            return
        with self._changed:
            replaced, self._pending = self._pending, steps
            self._changed.notify()
        if replaced is not None:
            self._supersede(replaced)

    def finish(self) -> None:
        """Waits until everything is pushed or given up, and logs the outcome."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            logger.info("Hub: waiting for the last push to %s", self.config.hub_model_id)
        self._thread.join()
        for steps, reason in sorted(self._failed.items()):
            logger.error("Hub: step %d was not pushed: %s", steps, reason)
        for steps, url in sorted(self._pushed.items()):
            logger.info("Hub: step %d is at %s", steps, url)
        left = [steps for steps in self._failed if self._folder(steps).exists()]
        if left:
            logger.error(
                "Hub: push the last one by hand: hf upload %s %s .", self.config.hub_model_id, self._folder(max(left))
            )
        else:
            shutil.rmtree(self.output_dir / FOLDER, ignore_errors=True)

    def _check_login(self) -> None:
        name = self.config.hub_model_id
        if is_offline_mode():
            raise ValueError("`push_to_hub` is true, it must be false while HF_HUB_OFFLINE is set.")
        visibility = "private" if self.config.hub_private else "public"
        try:
            is_private = _within(_LOGIN_LIMIT, self._open_repository)
            visibility = "private" if is_private else "public"
        except LocalTokenNotFoundError as error:
            raise ValueError("`push_to_hub` needs a login: run `hf auth login`, or set HF_TOKEN.") from error
        except Exception as error:
            if _is_refusal(error):
                raise ValueError(f"`hub_model_id` is {name!r}, but the Hub refuses it: {_described(error)}") from error
            logger.warning("Hub: it cannot be reached now, pushes will be tried all the same: %s", _described(error))
            visibility += " if it is new"
        every = f"every {self.config.push_every} steps and " if self.config.push_every else ""
        logger.info("Hub: %sat the end, to %s (%s): %s", every, name, visibility, ", ".join(self._contents()))

    def _contents(self) -> Iterator[str]:
        """Patterns of all that is pushed."""
        yield from (*MODEL_FILES, _CODE_FILES, _CARD_FILE, _CONFIG_FILE)
        yield f"{self._logs}/ (scalars)"
        if self.config.hub_pictures:
            yield f"{self._pictures}/ (images of data.validation)"

    def _open_repository(self) -> bool:
        """Whether it is private."""
        return open_repository(self.config.hub_model_id, private=self.config.hub_private).is_private

    def _folder(self, steps: int) -> Path:
        return self.output_dir / FOLDER / f"step-{steps}"

    def _set_aside(self, model_folder: Path, record: RunRecord) -> None:
        """Copies what is to be pushed to a separate folder, which nothing else changes or prunes."""
        folder = self._folder(record.steps)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in [path for pattern in (*MODEL_FILES, _CODE_FILES) for path in model_folder.glob(pattern)]:
            _link_or_copy(path, folder / path.name)
        # Not the files themselves, which grow, have pictures in them, and the host's name in theirs.
        logs = map(scalar_records, sorted(self.output_dir.glob("*/events.out.tfevents.*")))
        for number, records in enumerate(filter(None, logs)):
            _in_folder(folder / self._logs, f"events.out.tfevents.{number}").write_bytes(b"".join(records))
        if self.config.hub_pictures:
            for path in sorted((self.output_dir / PICTURES_FOLDER).glob("*.png")):
                _link_or_copy(path, _in_folder(folder / self._pictures, path.name))
        card = model_card(self.config, model_folder, record)
        (folder / _CARD_FILE).write_text(str(card), encoding="utf-8")
        (folder / _CONFIG_FILE).write_text(public_config(self.config) + "\n", encoding="utf-8")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                steps, self._pending = self._pending, None
            if steps is None:
                return
            try:
                self._deliver(steps)
            except Exception as error:
                logger.exception("Hub: step %d was not pushed", steps)
                self._failed[steps] = _described(error)

    def _deliver(self, steps: int) -> None:
        """Pushes, with retries, unless there is something newer to push."""
        for attempt, delay in enumerate((*RETRY_DELAYS, None), start=1):
            try:
                url = _within(_ATTEMPT_LIMIT, lambda: self._upload(steps))
            except Exception as error:
                reason = _described(error)
                if delay is None or _is_refusal(error):
                    self._failed[steps] = f"{reason} ({attempt} attempts)"
                    logger.error("Hub: step %d was not pushed, training goes on: %s", steps, reason)
                    # One is enough to push by hand; more would fill the disk while the Hub is away.
                    self._remove_up_to(steps - 1)
                    return
                delay = max(delay, _asked_delay(error))
                logger.warning("Hub: step %d, next attempt in %.0f s: %s", steps, delay, reason)
                with self._changed:
                    superseded = self._changed.wait_for(lambda: self._pending is not None, timeout=delay)
                if superseded:
                    self._supersede(steps)
                    return
            else:
                self._pushed[steps] = url
                logger.info("Hub: pushed step %d: %s", steps, url)
                self._remove_up_to(steps)
                return

    def _upload(self, steps: int) -> str:
        repo_id, folder = self.config.hub_model_id, self._folder(steps)
        self._open_repository()
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        stale = [path for path in self._api.list_repo_files(repo_id) if self._is_replaced(path) and path not in files]
        operations = [CommitOperationDelete(path_in_repo=path) for path in stale]
        operations += [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()
        ]
        # Not `upload_folder`, which may make several commits: a pull in between would get a mixture.
        commit = self._api.create_commit(repo_id, operations, commit_message=f"{self.config.stage}: step {steps}")
        return commit.commit_url

    def _is_replaced(self, path: str) -> bool:
        """
        Whether a push replaces this file, even by none. Weights in another number of shards would stay beside the new
        ones and could be loaded instead, and logs of earlier versions hold more than scalars.
        """
        is_weights = "/" not in path and any(fnmatch(path, pattern) for pattern in WEIGHT_FILES)
        return is_weights or path.startswith(f"{self._logs}/")

    def _supersede(self, steps: int) -> None:
        logger.info("Hub: step %d is not pushed, as there is a newer one", steps)
        shutil.rmtree(self._folder(steps), ignore_errors=True)

    def _remove_up_to(self, steps: int) -> None:
        for path in (self.output_dir / FOLDER).glob("step-*"):
            if int(path.name.partition("-")[2]) <= steps:
                shutil.rmtree(path, ignore_errors=True)


def _within(limit: float, call: Callable):
    """What the call returns or raises; `TimeoutError` if it takes more than `limit` seconds."""
    outcome = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer in {limit:.0f} s")
    return outcome["value"]


def _response(error: Exception):
    """The Hub's response behind the error, if there is one; the client wraps those of large files."""
    for one in (error, error.__cause__):
        if isinstance(one, HfHubHTTPError):
            return one.response
    return None


def _is_refusal(error: Exception) -> bool:
    """Whether the Hub understood the request and refused it, as it would again."""
    response = _response(error)
    return response is not None and 400 <= response.status_code < 500 and response.status_code not in _PASSING_STATUS


def _asked_delay(error: Exception) -> float:
    """The seconds that the Hub asks to wait, at most a quarter of an hour; 0 if it does not ask."""
    response = _response(error)
    text = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_DELAY) if text.isdigit() else 0.0


def _described(error: Exception) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return " ".join(f"{type(error).__name__}: {error}{cause}".split())


def _in_folder(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _link_or_copy(source: Path, target: Path) -> None:
    # A link takes no time or space. The files of a checkpoint are never written again, only unlinked.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
