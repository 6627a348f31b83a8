# Stub: not in the sdist. tests/model/test_export.py exports ALIT.
class ExportTesterMixin:
    pass
