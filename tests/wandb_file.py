"""Reads the rows of a `.wandb` file: records of protobuf in blocks, as LevelDB's log has them."""

import json
import struct
import time
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32_768, 7


def records(file: Path) -> list[Any]:
    """Every record of the file, once it is whole: W&B's service ends it soon after the run is finished."""
    until = time.monotonic() + 30
    while True:
        found = _records(file)
        if any(one.WhichOneof("record_type") == "exit" for one in found) or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _records(file: Path) -> list[Any]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, found, pieces = file.read_bytes(), HEADER, [], b""
    assert data[:4] in (b":W&B", b"")
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # no header fits in what is left of a block
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        pieces += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            try:
                record.ParseFromString(pieces)
            except DecodeError:  # its end is not written yet
                return found
            found.append(record)
            pieces = b""
    return found


def history(file: Path) -> list[dict[str, Any]]:
    """The logged rows, without W&B's own columns."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def exit_code(file: Path) -> int:
    """The code that the run was finished with."""
    (code,) = [one.exit.exit_code for one in records(file) if one.WhichOneof("record_type") == "exit"]
    return int(code)


def run(file: Path) -> Any:
    """What the run is: its group, job type, tags, name and configuration."""
    (record,) = [one.run for one in records(file) if one.WhichOneof("record_type") == "run"]
    return record
