"""The demo in the browser, `alit demo`. Nothing is imported here.

What is computed (`codes.py`, `tokenizer.py`, `uploads.py`) and how it looks (`rendering.py`, `attention_overlay.py`)
know nothing of Gradio. `layout.py` puts them together; `serving.py`, `unique_uploads.py` and `upload_limits.py` keep
many people apart and within limits; `space.py` makes a Hub Space of all.
"""
