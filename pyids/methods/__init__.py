"""Selection methods: one function a file, one line each in the table below.

A method from elsewhere is named as ``module:function``, or by a name that its package registers
under the entry point group ``pyids.methods`` (see docs/extending.md).
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from pyids.errors import ConfigError
from pyids.methods.method import Method, method
from pyids.methods.pool import Pool, Target, pool_from_arrays, pool_from_store

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


ENTRY_POINTS = "pyids.methods"


_BUILT_IN = {
    "random": "pyids.methods.random_rows:select",
    "longest": "pyids.methods.longest:select",
    "length-stratified": "pyids.methods.length_stratified:select",
    "uniform": "pyids.methods.uniform:select",
    "k-center": "pyids.methods.k_center:select",
    "km-closest": "pyids.methods.km_closest:select",
    "km-median": "pyids.methods.km_median:select",
    "km-random": "pyids.methods.km_random:select",
    "kmq": "pyids.methods.kmq:select",
    "deita": "pyids.methods.deita:select",
    "facility-location": "pyids.methods.facility_location:select",
    "qdit": "pyids.methods.qdit:select",
    "clusterclip": "pyids.methods.clusterclip:select",
    "novelselect": "pyids.methods.novelselect:select",
    "less": "pyids.methods.less:select",
    "mig": "pyids.methods.mig:select",
    "rds": "pyids.methods.rds:select",
}


def method_names() -> list[str]:
    """Return the names of all methods that are installed, our own first."""
    others = {entry.name for entry in entry_points(group=ENTRY_POINTS)} - set(_BUILT_IN)
    return [*_BUILT_IN, *sorted(others)]


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
    location = _BUILT_IN.get(name)
    if location is None:
        for entry in entry_points(group=ENTRY_POINTS):
            if entry.name == name:
                location = entry.value
    if location is None and ":" in name:
        location = name
    if location is None:
        raise ConfigError(
            f"no method {name!r}: choose one of {', '.join(method_names())}, or module:function"
        )
    module, _, attribute = location.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"method {name!r} cannot be loaded from {location}: {error}") from error
    if not isinstance(found, Method):
        raise ConfigError(
            f"method {name!r}: {location} is not decorated with @pyids.methods.method"
        )
    return found
