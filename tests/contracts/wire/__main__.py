import msgspec

from inferline_stream.dataplane.frames import FORMAT
from tests.contracts.wire import CURRENT, FOLDER, document, frames

if __name__ == "__main__":
    for name, found in ((CURRENT, document()), (f"frames-{FORMAT}", frames())):
        (FOLDER / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
