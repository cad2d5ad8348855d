"""Upload the quickstart's images and captions and a small base model to the trial store. It runs in the train image."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_api.stages import StoreAccess
from lora_trainer.store import Store


def main(endpoint: str, credentials: str, images: str, model: str) -> None:
    """Upload the files.

    Args:
        endpoint: host:port of the store, which has no TLS.
        credentials: a folder with the files accessKey and secretKey.
        images: a folder of images and their captions.
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
    for file in sorted([*Path(images).glob("*.jpg"), *Path(images).glob("*.jsonl")]):
        print(bucket.put_file(f"quickstart/ring/{file.name}", file).key)
    for file in sorted(path for path in Path(model).rglob("*") if path.is_file()):
        print(bucket.put_file(f"models/shapes-sdxl/{file.relative_to(model).as_posix()}", file).key)


if __name__ == "__main__":
    main(*sys.argv[1:])
