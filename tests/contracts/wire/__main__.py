import msgspec

from tests.contracts.wire import CURRENT, FOLDER, document

if __name__ == "__main__":
    file = FOLDER / f"{CURRENT}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document()), indent=1) + b"\n")
