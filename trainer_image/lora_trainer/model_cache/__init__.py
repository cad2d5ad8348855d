"""Base models on a disk: each whole and verified, or not there.

    <cache>/models/<name>-<hash>/contents.json    what lies beside it, with each file's sha256
                                 model/           a pipeline's folder
                                 vae/             only where the profile names another VAE
    <cache>/models/<name>-<hash>.partial/         what is being fetched; a next try goes on from there
    <cache>/models/<name>-<hash>.lock             held by the process that fetches

A model is fetched into the partial folder, verified and described by its contents.json, and then renamed: whoever
finds the folder finds all of it.
"""

from .cache import CachedModel, fill, find
from .origin import Origin, origin_of

__all__ = ["CachedModel", "Origin", "fill", "find", "origin_of"]
