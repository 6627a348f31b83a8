"""TensorBoard logs that can be shown to others."""

import struct
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event


# A record: length (8 bytes) and its checksum (4), the event, the event's checksum (4).
_HEADER_BYTES, _LENGTH_BYTES, _CHECKSUM_BYTES = 12, 8, 4


def copy_scalars(source: Path, target: Path) -> None:
    """
    Copies those events of a TensorBoard file that hold numbers and nothing else. Others show pictures, or texts such
    as command lines. The end of `source` may be an event that is still being written.
    """
    with open(source, "rb") as events, open(target, "wb") as scalars:
        while len(header := events.read(_HEADER_BYTES)) == _HEADER_BYTES:
            (length,) = struct.unpack("<Q", header[:_LENGTH_BYTES])
            content = events.read(length + _CHECKSUM_BYTES)
            if len(content) < length + _CHECKSUM_BYTES:
                return
            if _is_shown(Event.FromString(content[:length])):
                scalars.write(header + content)


def _is_shown(event: Event) -> bool:
    if event.WhichOneof("what") == "file_version":
        return True
    values = event.summary.value
    return len(values) > 0 and all(value.WhichOneof("value") == "simple_value" for value in values)
