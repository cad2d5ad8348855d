"""A quicker start: what slows the import of the libraries and serves nothing here is left out."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import the trainer in this block: in half the time and with 70 MB less.

    The collector of cyclic garbage, which finds none in modules and looks at them again and again, is off, and
    leaves them alone afterwards. torch's compiler, which libraries load to mark functions for it, is loaded when
    somebody compiles; bitsandbytes, which has four functions compiled as it is imported, keeps them as they are.
    """
    gc.disable()
    import torch

    compile_later = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    if COMPILER not in sys.modules:
        _postpone_compiler()
    _import_transformers()
    _import_diffusers()
    try:
        yield
    finally:
        torch.compile = compile_later
        gc.freeze()
        gc.enable()


def _as_it_is(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    """A decorator, with and without arguments, that changes nothing."""
    return function or _as_it_is


def _import_transformers() -> None:
    """It looks into each of its three thousand files twice, as its cache of what it saw holds 128 folders."""
    small = functools.lru_cache

    def cache(maxsize: Any = 128, typed: bool = False) -> Any:
        wanted = getattr(maxsize, "__name__", "") == "create_import_structure_from_path"
        return functools.cache(maxsize) if wanted else small(maxsize, typed)

    functools.lru_cache = cache
    try:
        import transformers.models  # noqa: F401
    finally:
        functools.lru_cache = small


def _import_diffusers() -> None:
    """It reads the lists of files of all that is installed to know the wheels of some packages; none is used here."""
    read_all = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = dict
    try:
        import diffusers.utils.import_utils  # noqa: F401
    finally:
        importlib.metadata.packages_distributions = read_all


def _postpone_compiler() -> None:
    spec = find_spec(COMPILER)
    assert spec is not None
    module = module_from_spec(spec)
    module.__class__ = _Later
    sys.modules[COMPILER] = module
    # All that transformers takes from there; it needs nothing of the rest.
    import_module(f"{COMPILER}._trace_wrapped_higher_order_op")
    sys.meta_path.insert(0, _Modules())


class _Later(ModuleType):
    """torch's compiler until somebody compiles: its marks on functions do nothing, all else loads it."""

    allow_in_graph = assume_constant_result = disable = staticmethod(_as_it_is)

    @staticmethod
    def graph_break(message: str = "") -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._load()
        return getattr(self, name)

    def _load(self) -> None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Modules)]
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)


class _Modules(MetaPathFinder, Loader):
    """Whoever asks for one of the compiler's modules compiles: the package comes first, whole."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}."):
            return None
        sys.modules[COMPILER]._load()
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
