"""scikit-learn's protocol without scikit-learn: parameters, names of columns, kinds of output."""

from __future__ import annotations

import secrets
import sys
import warnings
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pyids import checks

_OUTPUTS = ("default", "pandas", "polars")


class Estimator:
    """Constructor arguments by name, `feature_names_in_`, `set_output` and tags of a clusterer."""

    _parameters: ClassVar[tuple[str, ...]] = ()
    n_features_in_: int

    # -- parameters --

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: getattr(self, name) for name in self._parameters}

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments by name."""
        for name, value in params.items():
            if name not in self._parameters:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: "
                    f"{list(self._parameters)!r}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({shown})"

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn, which is the only caller."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=InputTags(sparse=False),
        )

    # -- columns --

    def _remember_names(self, x: Any) -> None:
        names = _column_names(x)
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _compare_names(self, x: Any) -> None:
        """Refuse a data frame whose columns are not those of `fit`, in their order."""
        names, known = _column_names(x), getattr(self, "feature_names_in_", None)
        kind = type(self).__name__
        if known is None:
            if names is not None:
                warnings.warn(
                    f"X has feature names, but {kind} was fitted without feature names",
                    UserWarning,
                    stacklevel=4,
                )
            return
        if names is None:
            # Shards of a fit by data frames have none either, and say so.
            warnings.warn(
                f"X does not have valid feature names, but {kind} was fitted with feature names",
                UserWarning,
                stacklevel=4,
            )
            return
        if np.array_equal(names, known):
            return
        message = "The feature names should match those that were passed during fit.\n"
        unseen = sorted(set(names) - set(known))
        missing = sorted(set(known) - set(names))
        if unseen:
            message += "Feature names unseen at fit time:\n" + _listed(unseen)
        if missing:
            message += "Feature names seen at fit time, yet now missing:\n" + _listed(missing)
        if not unseen and not missing:
            message += "Feature names must be in the same order as they were in fit.\n"
        raise ValueError(message)

    # -- outputs --

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what `transform` returns.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None
            An array, or a data frame with the columns `get_feature_names_out`; None changes
            nothing.
        """
        if transform is None:
            return self
        if transform not in _OUTPUTS:
            raise ValueError(f"transform={transform!r}: expected one of {_OUTPUTS}")
        # Under this name scikit-learn's clone copies it.
        self._sklearn_output_config = {"transform": transform}
        return self

    def _output(self, values: NDArray[Any], x: Any) -> Any:
        kind = getattr(self, "_sklearn_output_config", {}).get("transform")
        if kind is None and "sklearn" in sys.modules:
            from sklearn import get_config

            kind = get_config()["transform_output"]
        if kind in (None, "default"):
            return values
        names = self.get_feature_names_out()
        if kind == "pandas":
            frames = import_module("pandas")
            rows = getattr(x, "index", None)
            return frames.DataFrame(values, index=rows, columns=names, copy=False)
        return import_module("polars").DataFrame(values, schema=names.tolist(), orient="row")

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns of `transform`: the class's in lower case, numbered."""
        raise NotImplementedError


def _column_names(x: Any) -> NDArray[np.object_] | None:
    """Return the names of a data frame's columns if they are text."""
    columns = getattr(x, "columns", None)
    if columns is None or not hasattr(x, "shape"):
        return None
    names = np.asarray(list(columns), dtype=object)
    texts = [isinstance(name, str) for name in names]
    if not texts or not any(texts):
        return None
    if not all(texts):
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your "
            f"input has {sorted({type(name).__name__ for name in names})} as feature name / column "
            "name types."
        )
    return names


def _listed(names: list[str], most: int = 5) -> str:
    lines = [f"- {name}\n" for name in names[:most]]
    return "".join(lines + ["- ...\n"] * (len(names) > most))


def seed_of(random_state: Any) -> int:
    """Return a 63-bit seed from whatever scikit-learn takes as random_state."""
    if random_state is None:
        return secrets.randbits(63)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    return checks.unsigned_seed(random_state)


def not_fitted_error() -> type[Exception]:
    """scikit-learn's own error where scikit-learn is in use, else one of the same kin."""
    if "sklearn" in sys.modules:
        from sklearn.exceptions import NotFittedError

        error: type[Exception] = NotFittedError
        return error
    return ValueError
