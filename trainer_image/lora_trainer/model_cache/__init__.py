"""Cache of base models on a disk. An entry is either complete and verified, or absent.

    <cache>/models/<name>-<hash>/contents.json    the entry's files with their sha256
                                 model/           the pipeline's folder
                                 vae/             only if the profile names a VAE
    <cache>/models/<name>-<hash>.partial/         an unfinished download; the next attempt resumes it
    <cache>/models/<name>-<hash>.lock             locked by the process that fetches
    <cache>/models/<name>-<hash>.before/          the previous entry, until the new one is in place

A model is fetched into the partial folder and verified, contents.json is written, and the folder is renamed.
Therefore a folder with the final name is always complete.
"""

from .cache import CachedModel, fill, find
from .encoders import provide_encoder
from .origin import Origin
from .resolve import origin_of

__all__ = ["CachedModel", "Origin", "fill", "find", "origin_of", "provide_encoder"]
