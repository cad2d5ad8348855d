"""Put the quickstart's pictures with their captions and a small base model into the trial store. Run in the train image."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_api.stages import StoreAccess
from lora_trainer.store import Store


def main(endpoint: str, credentials: str, pictures: str, model: str) -> None:
    """
    Args:
        endpoint: host:port of the store, which speaks no TLS.
        credentials: a folder with the files accessKey and secretKey.
        pictures: a folder of images and their captions.
        model: a folder with a small SDXL pipeline.
    """
    access = StoreAccess(
        endpoint=endpoint,
        secure=False,
        credentials_dir=credentials,
        input_bucket="datasets",
        output_bucket="loras",
    )
    bucket = Store(access).input
    for file in sorted([*Path(pictures).glob("*.jpg"), *Path(pictures).glob("*.jsonl")]):
        print(bucket.put_file(f"quickstart/ring/{file.name}", file).key)
    for file in sorted(path for path in Path(model).rglob("*") if path.is_file()):
        print(bucket.put_file(f"models/shapes-sdxl/{file.relative_to(model).as_posix()}", file).key)


if __name__ == "__main__":
    main(*sys.argv[1:])
