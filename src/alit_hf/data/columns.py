"""Which columns of the data are taken: the pictures', and others that are asked for."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import datasets

from alit_hf.utils.shown_text import shown

from .parts import pictures_of
from .picture_cells import holds_pictures, holds_pixels


FILE_NAME = "file_name"
"""The column of pictures' names, which all rows get."""
IMAGE = "image"
"""The column of pictures, if nothing else is said."""

# In which `datasets` names the tar on this machine.
_TAR_PATH = "__url__"
_COLUMNS_SHOWN = 20


class ImageColumnError(ValueError):
    """The data have no such column, or no one column of pictures."""


def check_parquet_files(
    in_files: list[tuple[str, datasets.Features]], columns: datasets.Features, names: list[str] | None
) -> None:
    """Whether all files have the columns `names`, or for `None` those of the data and no others, of the same kind."""
    # `datasets` takes the classes of the first file for those of all.
    classes: dict[str, tuple[list[str], str]] = {}
    for file, features in in_files:
        has_all = features.keys() == columns.keys() if names is None else features.keys() >= set(names)
        if not has_all:
            raise ValueError(f"{file} has the columns {', '.join(features)}, but the data have {', '.join(columns)}")
        for column in names or features:
            if isinstance(feature := features[column], datasets.ClassLabel):
                known, other = classes.setdefault(column, (feature.names, file))
                if known != feature.names:
                    raise ValueError(
                        f"the classes of `{column}` are {known} in {other}, but {feature.names} in {file}"
                    )


def image_column_of(described: str, columns: datasets.Features, wanted: str | None, is_tar: bool) -> str:
    """
    The column of the pictures: the one that is wanted, or else the one that must be meant.

    Raises:
        [`ImageColumnError`]: if there is none, or several could be meant.
    """
    name = wanted or IMAGE
    has_name = name in columns
    if has_name and holds_pictures(columns[name]):
        return name
    candidates = [column for column, feature in columns.items() if isinstance(feature, datasets.Image)]
    candidates = candidates or [column for column, feature in columns.items() if holds_pictures(feature)]
    if is_tar:
        candidates = pictures_of(candidates) or candidates
    # The columns of tars are called after suffixes, which are no reason to refuse them.
    if len(candidates) == 1 and (wanted is None or (is_tar and not has_name)):
        return candidates[0]
    if has_name and holds_pixels(columns[name]) and (wanted is not None or not candidates):
        return name
    types = datasets.Features(columns).arrow_schema
    listed = [
        f"`{column}` ({'pictures' if column in candidates else textwrap.shorten(str(types.field(column).type), 60)})"
        for column in islice(columns, _COLUMNS_SHOWN)
    ]
    problem = f"no pictures in its column `{name}`" if has_name else f"no column `{name}`"
    raise ImageColumnError(
        f"{described} has {problem}, and {len(candidates)} columns of pictures among {', '.join(listed)}"
        + _and_more(len(columns))
    )


def other_columns(described: str, columns: Mapping[str, Any], picture: str, wanted: Sequence[str] | None) -> list[str]:
    """The columns beside the pictures', or those of them that are wanted."""
    others = [name for name in columns if name not in (picture, _TAR_PATH)]
    if wanted is None:
        return others
    known = list(dict.fromkeys([FILE_NAME, *others]))
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"{described} has no column {_listed(unknown)} beside its pictures, it has {_listed(known)}")
    return [name for name in others if name in wanted]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{shown(name)}`" for name in names[:_COLUMNS_SHOWN]) + _and_more(len(names))


def _and_more(count: int) -> str:
    return f" and {count - _COLUMNS_SHOWN} more" if count > _COLUMNS_SHOWN else ""


__all__ = ["FILE_NAME", "IMAGE", "ImageColumnError", "check_parquet_files", "image_column_of", "other_columns"]
