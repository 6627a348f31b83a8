"""
Checks what is posted before Gradio processes it, as Gradio fetches every address in it, whatever component it is for.
"""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class CheckedBlocks(gr.Blocks):
    """A page whose events take only the values that their components can have."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any, **kwargs: Any) -> list:
        if len(inputs) != len(block_fn.inputs):
            raise _refusal(f"there are {len(inputs)} values, there must be {len(block_fn.inputs)}")
        checked = [_checked(block, value) for block, value in zip(block_fn.inputs, inputs, strict=True)]
        return await super().preprocess_data(block_fn, checked, *args, **kwargs)


class NoAddresses:
    """Middleware that refuses paths with an address in them: some of Gradio's routes answer with what is there."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http" and "://" in scope["path"]:
            answer = PlainTextResponse("Addresses are not fetched.", status_code=403)
        await answer(scope, receive, send)


def chosen(event: gr.EventData, name: str, choices: Sequence[str]) -> str:
    """
    What was clicked.

    Args:
        event (`gr.EventData`): with the fields that were posted.
        name (`str`): of the field.
        choices (`Sequence[str]`): all that can be clicked.

    Raises:
        `gr.Error`: if it is none of them.
    """
    posted = event._data.get(name) if isinstance(event._data, dict) else None
    if not isinstance(posted, str) or posted not in choices:
        raise _refusal(f"`{name}` is {reprlib.repr(posted)}, it must be one of {reprlib.repr(choices)}")
    return posted


def _checked(block: gr.components.Component, value: Any) -> Any:
    if isinstance(block, gr.State):
        return None  # Gradio takes its own
    label = block.label
    if isinstance(block, gr.Slider):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not block.minimum <= value <= block.maximum:
            allowed = f"a number from {block.minimum} to {block.maximum}"
            raise _refusal(f"`{label}` is {reprlib.repr(value)}, it must be {allowed}")
        return value
    if isinstance(block, gr.Checkbox):
        if not isinstance(value, bool):
            raise _refusal(f"`{label}` is {reprlib.repr(value)}, it must be true or false")
        return value
    if isinstance(block, gr.File):
        return _uploaded(value)
    raise _refusal(f"`{label}` takes no values")


def _uploaded(value: Any) -> dict:
    """Names an uploaded file and nothing else, as further fields might hold addresses."""
    path = value.get("path") if isinstance(value, dict) else None
    try:
        is_uploaded = Path(get_upload_folder()).resolve() in Path(path).resolve().parents
    except (TypeError, ValueError, OSError):
        is_uploaded = False
    if not is_uploaded:
        raise _refusal("Only files can be dropped in, no addresses")
    return FileData(path=path).model_dump()


def _refusal(problem: str) -> gr.Error:
    return gr.Error(f"{problem}.", print_exception=False)


__all__ = ["CheckedBlocks", "NoAddresses", "chosen"]
