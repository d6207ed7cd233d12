"""One-shot selection methods: one function a file; `pyids.registry` lists them.

A method from elsewhere is named as ``module:function``, or by a name that its package registers
under the entry point group ``pyids.methods`` (see docs/extending.md).
"""

from __future__ import annotations

from dataclasses import replace

from pyids.errors import ConfigError
from pyids.methods.method import Method, method
from pyids.methods.pool import Pool, Target, pool_from_arrays, pool_from_store
from pyids.registry import METHODS

__all__ = [
    "Method",
    "Pool",
    "Target",
    "get_method",
    "method",
    "method_names",
    "pool_from_arrays",
    "pool_from_store",
]


def method_names() -> list[str]:
    """Return the names of all methods that are installed, our own first."""
    return METHODS.names()


def get_method(name: str) -> Method:
    """Find a method by name.

    Parameters
    ----------
    name : str
        One of `method_names`, or ``module:attribute``.

    Raises
    ------
    ConfigError
        There is none of that name, or what is there is not a `Method`.
    """
    found = METHODS.find(name)
    if not isinstance(found, Method):
        raise ConfigError(
            f"method {name!r}: it is not decorated with @pyids.methods.method: decorate it"
        )
    return replace(found, name=name)
