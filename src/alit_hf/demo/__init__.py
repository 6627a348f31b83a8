"""The demo in the browser, `alit demo`. Nothing is imported here.

The computation (`codes.py`, `tokenizer.py`, `uploads.py`) and its rendering (`rendering.py`) know nothing about
Gradio. `layout.py` puts them together; `serving.py` and `upload_limits.py` keep users separate and within limits;
`space.py` makes a Hub Space of it.
"""
