"""The demo's page: its layout, and what happens when something is dropped, moved or clicked."""

from collections.abc import Callable
from functools import cache
from typing import Any

import gradio as gr

from alit_hf.codes.length_choice import DEFAULT_THRESHOLD

from .checked_requests import CheckedBlocks, chosen
from .codes import EncodedPicture, Kept
from .example_photos import EXAMPLE_NAMES, example_photo
from .rendering import chosen_html, examples_html, message_html, strip_html, tokens_html
from .tokenizer import DemoTokenizer
from .uploads import UploadError, process_upload


# The model processes one picture at a time, and everyone waits for a turn; events without the model do not wait.
_ON_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
_AT_ONCE = {"concurrency_limit": None, "show_progress": "hidden"}
_PRIVATE = {"api_visibility": "private"}

# Width in pixels below which columns are stacked.
_COLUMN_WIDTH = 340
_PART_WIDTH = 260

_LARGEST_THRESHOLD = 0.3

_ABOUT = """# ALIT: as many tokens as a picture needs
Each picture is encoded at every length, and the shortest code whose error is below the threshold is chosen.
What you drop in is deleted as soon as it is read, and what you see is forgotten after an hour without you."""

_CLICKS = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-%(kind)s]');
    if (button) trigger('click', {%(kind)s: button.dataset.%(kind)s});
});
"""
_PICKED = "figure:nth-child(${picked}) img { outline: 4px solid var(--color-accent); outline-offset: 1px; }"
_PRESSED = """
button:nth-child(${pressed}) { border-color: transparent; background: var(--primary-700); color: white; }
"""


def build_demo(tokenizer: DemoTokenizer) -> gr.Blocks:
    """
    Args:
        tokenizer (`DemoTokenizer`): processes one picture at a time, for all users.
    """
    encode_example = cache(lambda name: tokenizer.encode(name, example_photo(name)))
    first_example = encode_example(EXAMPLE_NAMES[0])
    with CheckedBlocks(title="ALIT", analytics_enabled=False) as demo:
        gr.Markdown(_ABOUT)
        with gr.Row(equal_height=True):
            with gr.Column(scale=3, min_width=_PART_WIDTH):
                threshold = gr.Slider(
                    0,
                    _LARGEST_THRESHOLD,
                    value=DEFAULT_THRESHOLD,
                    step=0.005,
                    label="Threshold",
                    info="L1 error (mean absolute difference of pixels in [0, 1]) that is good enough",
                    elem_id="threshold",
                )
            with gr.Column(scale=1, min_width=_PART_WIDTH):
                compare = gr.Checkbox(label="Compare with a second picture", elem_id="compare")
                predict = gr.Checkbox(
                    label="Predict the length",
                    info="chosen without decoding, so that 9 of 10 pictures meet the threshold or get all tokens",
                    visible=tokenizer.confidence is not None,
                    elem_id="predict",
                )
        with gr.Row():
            with gr.Column(min_width=_COLUMN_WIDTH):
                first = _View("first", starts_empty=False)
            with gr.Column(min_width=_COLUMN_WIDTH, visible=False) as second_column:
                second = _View("second", starts_empty=True)
        for view in (first, second):
            _connect(view, threshold, predict, tokenizer, encode_example)
        compare.change(
            lambda wanted: gr.Column(visible=wanted), compare, second_column, show_progress="hidden", **_PRIVATE
        )
        demo.load(
            lambda *wanted: _shown(first_example, *wanted), [threshold, predict], first.outputs, **_AT_ONCE, **_PRIVATE
        )
    return demo


class _View:
    """One picture's part of the page, created in place. Its state belongs to the session."""

    def __init__(self, name: str, starts_empty: bool):
        self.name = name
        self.starts_empty = starts_empty
        self.kept = gr.State()
        self.token = gr.State()
        with gr.Row():
            with gr.Column(min_width=_PART_WIDTH):
                self.file = gr.File(label="Drop in a picture or an .alit file", height=140, elem_id=f"{name}-file")
            with gr.Column(min_width=_PART_WIDTH):
                self.examples = _html(
                    f"{name}-examples",
                    examples_html({example: example_photo(example) for example in EXAMPLE_NAMES}),
                    js_on_load=_CLICKS % {"kind": "example"},
                )
        self.message = _html(f"{name}-message", visible=False)
        self.chosen = _html(f"{name}-chosen")
        self.strip = _html(f"{name}-strip", picked=0, css_template=_PICKED)
        self.tokens = _html(f"{name}-tokens", pressed=0, css_template=_PRESSED, js_on_load=_CLICKS % {"kind": "token"})
        self.outputs_of_choice = [self.token, self.strip, self.chosen, self.tokens]
        self.outputs = [self.message, self.file, self.kept, *self.outputs_of_choice]


def _html(elem_id: str, value: str = "", **kwargs: Any) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, elem_classes="alit", apply_default_css=False, **kwargs)


def _connect(
    view: _View,
    threshold: gr.Slider,
    predict: gr.Checkbox,
    tokenizer: DemoTokenizer,
    encode_example: Callable[[str], EncodedPicture],
) -> None:
    all_tokens = [str(token) for token in range(tokenizer.model.config.max_tokens)]

    def drop(path: str, level: float, is_predicted: bool) -> list:
        try:
            return _shown(process_upload(tokenizer, path), level, is_predicted)
        except UploadError as error:
            message = gr.HTML(message_html(str(error)), visible=True)
            return [message, None, *[gr.skip()] * 5]  # the previous picture stays

    def pick_example(level: float, is_predicted: bool, event: gr.EventData) -> list:
        return _shown(encode_example(chosen(event, "example", EXAMPLE_NAMES)), level, is_predicted)

    def press_token(kept: Kept | None, level: float, is_predicted: bool, event: gr.EventData) -> list:
        if kept is None:
            raise _forgotten()
        return _choice(kept, level, is_predicted, int(chosen(event, "token", all_tokens)))

    def move(kept: Kept | None, level: float, is_predicted: bool, token: int | None) -> list:
        if kept is None:
            if view.starts_empty:
                return _nothing()
            raise _forgotten()
        return _choice(kept, level, is_predicted, token)

    def catch_up(kept: Kept | None, level: float, is_predicted: bool, token: int | None) -> list:
        return _nothing() if kept is None else _choice(kept, level, is_predicted, token)

    choice = [view.kept, threshold, predict, view.token]
    dropped = view.file.upload(
        drop,
        [view.file, threshold, predict],
        view.outputs,
        show_progress_on=view.chosen,
        api_name=f"{view.name}_drop",
        **_ON_MODEL,
    )
    picked = view.examples.click(
        pick_example, [threshold, predict], view.outputs, show_progress_on=view.chosen, **_ON_MODEL, **_PRIVATE
    )
    # The slider may have moved while the picture waited for its turn.
    for shown in (dropped, picked):
        shown.then(catch_up, choice, view.outputs_of_choice, **_AT_ONCE, **_PRIVATE)
    threshold.change(
        move,
        choice,
        view.outputs_of_choice,
        trigger_mode="always_last",
        api_name=f"{view.name}_choose",
        **_AT_ONCE,
    )
    predict.change(move, choice, view.outputs_of_choice, trigger_mode="always_last", **_AT_ONCE, **_PRIVATE)
    view.tokens.click(
        press_token,
        [view.kept, threshold, predict],
        view.outputs_of_choice,
        trigger_mode="always_last",
        **_AT_ONCE,
        **_PRIVATE,
    )


def _forgotten() -> gr.Error:
    return gr.Error("There is no picture any more, please drop it in again.", print_exception=False)


def _nothing() -> list:
    """The outputs of a choice without a picture, given in full because the page's templates need all of them."""
    return [None, gr.HTML("", picked=0), "", gr.HTML("", pressed=0)]


def _shown(kept: Kept, threshold: float, is_predicted: bool) -> list:
    """A view's outputs for a new picture."""
    message = gr.HTML("", visible=False)
    return [message, None, kept, *_choice(kept, threshold, is_predicted, None, value=strip_html(kept))]


def _choice(kept: Kept, threshold: float, is_predicted: bool, token: int | None, **strip: str) -> list:
    """
    The outputs of a choice for a threshold and a token; nothing is encoded or decoded. Without arguments for the
    `strip`, only its frame moves.
    """
    chosen = kept.choose(threshold, is_predicted)
    if token is not None and not 0 <= token < chosen.num_tokens:
        token = None
    pressed = 0 if token is None else 1 + token
    return [
        token,
        gr.HTML(picked=chosen.position, **strip),
        chosen_html(kept, chosen, token),
        gr.HTML(tokens_html(chosen), pressed=pressed),
    ]


__all__ = ["build_demo"]
