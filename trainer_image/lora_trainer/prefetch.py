"""`lora_trainer prefetch`: fetch a base model into a cache that training pods mount read-only."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from pydantic import ValidationError

from lora_api.exits import ExitCode
from lora_api.job import describe
from lora_api.log_lines import configure_stderr
from lora_api.prefetch import PrefetchConfig
from lora_api.stages import StoreAccess

from .errors import BadConfigurationError
from .model_cache import fill, origin_of
from .runtime import explain
from .store import Store

log = logging.getLogger("lora_trainer.prefetch")


def main(config_path: Path) -> int:
    """Fetch a model, or verify a cached one. Return an exit code of `lora_api.exits`."""
    configure_stderr("%(asctime)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # The kernel ignores SIGTERM for the first process of a container unless it has a handler.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _prefetch(_load(config_path))
    except BaseException as error:
        result, code = explain(error)
        log.error("%s: %s", result.reason, result.message)
        return code
    return ExitCode.OK


def _load(path: Path) -> PrefetchConfig:
    try:
        config = PrefetchConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadConfigurationError(f"{path}: {describe(error, 'prefetch')}") from None
    if config.model.source == "store" and config.store is None:
        raise BadConfigurationError(f"{path}: a model with source `store` needs the field `store`")
    return config


def _prefetch(config: PrefetchConfig) -> None:
    bucket = None
    if config.store:
        access = StoreAccess.of(config.store, config.credentials_dir, config.ca_file)
        bucket = Store(access).input
    model = fill(origin_of(config.model, bucket, config.kind), Path(config.cache), reread=True)
    files = model.contents.files
    size = sum(file.bytes for file in files) / 1e6
    log.info(
        "%s is in %s: %d files, %.1f MB, %s",
        config.name,
        model.entry,
        len(files),
        size,
        model.contents.identity,
    )
