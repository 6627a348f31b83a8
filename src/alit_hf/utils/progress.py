"""The one progress bar: with the time left, for work of more than two seconds, and once for all processes."""

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from tqdm import tqdm

from .processes import is_first_process


class _Pace(NamedTuple):
    """When a bar is drawn for the first time, and how often then, in seconds."""

    delay: float
    interval: float


_IN_TERMINAL = _Pace(2.0, 1.0)
# Which keeps all that was ever drawn.
_IN_FILE = _Pace(60.0, 60.0)

_FORMAT = "{l_bar}{bar}| {whole}/{total} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):
    """
    A bar of tqdm on stderr. In a terminal it is drawn once the work has taken two seconds, and then every second, so
    that the clock goes on where the work does not; elsewhere once a minute. Of several processes the first one has it.

    Args:
        iterable, desc, total, unit, initial and others: of tqdm. The unit is an image by default.
    """

    def __init__(self, *args, **kwargs):
        end_startup()
        self.done = kwargs.get("initial", 0)
        self._ended = threading.Event()
        self._in_terminal = sys.stderr is not None and sys.stderr.isatty()
        pace = _IN_TERMINAL if self._in_terminal else _IN_FILE
        own = {
            "file": sys.stderr,
            "disable": kwargs.get("disable") or _hidden or sys.stderr is None or not is_first_process(),
            "delay": pace.delay,
            "mininterval": 0.1,
            **_size_of(sys.stderr),
        }
        super().__init__(*args, **{"unit": "image"} | kwargs | own)
        if not self.disable:
            if self.total is not None and self.bar_format is None:
                self.bar_format = _FORMAT
            arguments = (weakref.ref(self), self._ended, pace)
            threading.Thread(target=_keep_drawing, args=arguments, daemon=True).start()

    @property
    def format_dict(self) -> dict:
        # The sum of the shares of one may be a little less than one.
        return super().format_dict | {"whole": int(self.n + 1e-6)}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar: in place in a terminal, and elsewhere as a line of its own."""
        if self._in_terminal:
            return super().display(msg, pos)
        if msg is None:
            print(self, file=self.fp, flush=True)
        return False

    def refresh(self, *args, **kwargs) -> bool:
        """Draws the bar in a terminal. Elsewhere only time does."""
        return self._in_terminal and super().refresh(*args, **kwargs)

    def clear(self, *args, **kwargs) -> None:
        """Makes room for another line in a terminal."""
        if self._in_terminal:
            super().clear(*args, **kwargs)

    def update(self, n: float = 1) -> None:
        """Counts `n` more as done."""
        self.done += n
        super().update(max(0, self.done - self.n))

    def advance(self, share: float, end: float) -> None:
        """Moves by a share of what is not done yet, but not beyond `end`. `update` then moves by as much less."""
        super().update(max(0, min(share, end - self.n)))

    def close(self) -> None:
        self._ended.set()
        if not self.disable and not self._in_terminal:
            self.leave = False
            # Or it was over before it was drawn.
            if not self.delay:
                self.display()
        super().close()


def _size_of(stream: TextIO | None) -> dict[str, int | bool]:
    """Arguments of tqdm, which draws nothing in a terminal that does not know its size."""
    try:
        known = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, AttributeError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _keep_drawing(reference: weakref.ref, ended: threading.Event, pace: _Pace) -> None:
    wait = pace.delay
    while not ended.wait(wait):
        bar, wait = reference(), pace.interval
        if bar is None:
            return
        with bar.get_lock():
            if not bar.disable:
                # From here on, `close` has something to finish.
                bar.delay = 0
                bar.display()
        del bar


_hidden = False
_startup: ProgressBar | None = None


@contextmanager
def hidden_progress(hidden: bool = True) -> Iterator[None]:
    """Within it there are no bars."""
    global _hidden
    before, _hidden = _hidden, hidden
    try:
        yield
    finally:
        _hidden = before


def show_startup() -> None:
    """In a terminal, shows how long libraries and a model have been loading, until `end_startup`."""
    global _startup
    if sys.stderr is not None and sys.stderr.isatty():
        _startup = ProgressBar(desc="loading", leave=False, bar_format="{desc} [{elapsed}]")


def end_startup() -> None:
    """Takes that line away, if it is there. Any other bar does so, too."""
    global _startup
    if _startup is not None:
        _startup.close()
        _startup = None


def adopt_library_bars() -> None:
    """Makes bars of transformers [`ProgressBar`]s, and turns those of downloads off where there are to be none."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda _, args, kwargs: ProgressBar(*args, **{"unit": "it"} | kwargs))
    if _hidden or not is_first_process():
        disable_progress_bars()


__all__ = ["ProgressBar", "adopt_library_bars", "end_startup", "hidden_progress", "show_startup"]
