"""Put the quickstart's pictures and a small base model into the trial store. Run in the train image."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_api.steps import StoreAccess
from lora_trainer.store import Store
from lora_trainer.train.tiny import write_tiny_sdxl


def main(endpoint: str, credentials: str, pictures: str) -> None:
    """
    Args:
        endpoint: host:port of the store, which speaks no TLS.
        credentials: a folder with the files accessKey and secretKey.
        pictures: a folder of images.
    """
    access = StoreAccess(
        endpoint=endpoint,
        secure=False,
        credentials_dir=credentials,
        input_bucket="datasets",
        output_bucket="loras",
    )
    bucket = Store(access).input
    for picture in sorted(Path(pictures).glob("*.jpg")):
        print(bucket.put_file(f"quickstart/rocket/{picture.name}", picture).key)
    with TemporaryDirectory() as folder:
        write_tiny_sdxl(Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            print(bucket.put_file(f"models/tiny-sdxl/{file.relative_to(folder).as_posix()}", file).key)


if __name__ == "__main__":
    main(*sys.argv[1:])
