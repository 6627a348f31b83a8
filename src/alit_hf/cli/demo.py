"""`alit demo`: a page in the browser that encodes dropped pictures, served here or as a Space on the Hub."""

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alit_hf.utils.error_reason import reason

from .errors import FileError, UsageError
from .options import add_model_arguments
from .printing import print_line


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="a page in the browser that encodes dropped pictures",
        description="Serves a page on this machine: drop in pictures, look at them at every length, choose a "
        "threshold, click tokens, download .alit files and drop them back in. Ends with Ctrl-C.",
    )
    parser.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="instead of serving it here, create or update a Space of that name on the Hub; needs a login",
    )
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.push is not None:
        _check_space_name(arguments.push)
    try:
        from alit_hf.demo.serving import served_demo
        from alit_hf.demo.tokenizer import DemoTokenizer
    except ModuleNotFoundError as error:
        raise UsageError(f"alit demo needs {error.name}: `pip install 'alit-hf[demo]'`") from error

    from .loading import load_model

    # Also for a Space, where nobody would see that the model cannot be loaded.
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    try:
        tokenizer = DemoTokenizer(model, processor)
    except ValueError as error:
        raise UsageError(f"--model cannot be used: {reason(error)}") from error
    if arguments.push is not None:
        return _push(arguments.push, arguments.model)
    try:
        with _ended_by_signals(), served_demo(tokenizer) as url:
            print_line(f"{url} (Ctrl-C ends it)")
            threading.Event().wait()
    except OSError as error:
        raise UsageError(f"the demo cannot be served: {reason(error)}") from error
    except KeyboardInterrupt:
        return 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Makes signals that would end the program at once, with files left behind, act like Ctrl-C."""

    def end(*_) -> None:
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # An ignored signal is ignored on purpose, for example by nohup.
    before = {number: signal.signal(number, end) for number in signals if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_space_name(name: str) -> None:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push is {name!r}: {reason(error)}") from error
    if "/" not in name:
        raise UsageError(f"--push is {name!r}, it must be ORG/NAME")
    if is_offline_mode():
        raise UsageError("--push needs the Hub, but HF_HUB_OFFLINE is set")


def _push(name: str, model: str | None) -> int:
    from huggingface_hub.errors import LocalTokenNotFoundError

    from alit_hf.demo.space import push_space

    try:
        url = push_space(name, model)
    except LocalTokenNotFoundError as error:
        raise UsageError("--push needs a login: run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:  # the Hub's client raises its own and those of the libraries below it
        raise FileError(f"{name} was not pushed: {reason(error)}") from error
    print_line(url)
    return 0


__all__ = ["add_parser", "run"]
