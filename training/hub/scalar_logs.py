"""TensorBoard logs that can be shown to others."""

import struct
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event


# A record: length (8 bytes) and its checksum (4), the event, the event's checksum (4).
_HEADER_BYTES, _LENGTH_BYTES, _CHECKSUM_BYTES = 12, 8, 4


def scalar_records(path: Path) -> list[bytes]:
    """
    The records of a TensorBoard file whose events hold numbers and nothing else, to be written to another file as they
    are; none if there are no numbers. Other events show pictures, or texts such as command lines. The end of the file
    may be an event that is still being written.
    """
    versions, scalars = [], []
    with open(path, "rb") as file:
        while len(header := file.read(_HEADER_BYTES)) == _HEADER_BYTES:
            (length,) = struct.unpack("<Q", header[:_LENGTH_BYTES])
            content = file.read(length + _CHECKSUM_BYTES)
            if len(content) < length + _CHECKSUM_BYTES:
                break
            event = Event.FromString(content[:length])
            if event.WhichOneof("what") == "file_version":
                versions.append(header + content)
            elif _is_scalar(event):
                scalars.append(header + content)
    return versions + scalars if scalars else []


def _is_scalar(event: Event) -> bool:
    values = event.summary.value
    return len(values) > 0 and all(value.WhichOneof("value") == "simple_value" for value in values)
