"""Tars of webdataset, whole and damaged."""

import io
import tarfile
from pathlib import Path

from token_data import png


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(numbers, suffix: str = "png") -> dict[str, bytes]:
    """A class and a picture for each number."""
    members = {}
    for number in numbers:
        members |= {f"{number:02d}.cls": b"7", f"{number:02d}.{suffix}": png(number)}
    return members


def member_ends(path: Path) -> list[int]:
    """Where each member ends, with its padding."""
    with tarfile.open(path) as archive:
        return [member.offset_data + -(-member.size // 512) * 512 for member in archive]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
