"""The weights of a spec: one pair for all of its layers, or a ramp over depth (LiNeS, arXiv 2410.17146)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError, field_validator

from plam_eval.arguments import read_number
from plam_eval.errors import quoted
from plam_eval.rules import Coefficients

Ends = tuple[float, float]
"""A weight in the first merged layer and in the last one."""
PAIR, RAMP = "pair", "ramp"
"""What pydantic calls the two forms where it says in which a problem is."""

_FORM = "expected a number such as 0.9, or two for a ramp over depth, as [0.9, 0.5] (in model_args 0.9:0.5)"


class Record(BaseModel):
    """What is read from a spec: frozen, of finite numbers, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Weights(Record):
    """Coefficients of W = model * W_mllm + base_model * W_base. They need not sum to one."""

    model: float
    base_model: float

    @property
    def coefficients(self) -> Coefficients:
        """Both, for the functions of `plam_eval.rules`."""
        return Coefficients(self.model, self.base_model)

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any) -> float:
        return read_number(value)

    def at(self, layer: int, layers: Sequence[int]) -> Weights:
        """The weights of one layer, which are these.

        Args:
            layer: one of the layers.
            layers: all that are merged.
        """
        return self

    @property
    def written(self) -> tuple[str, str]:
        """Both as model_args have them: "0.9" and "0.3"."""
        return write_weight(self.model), write_weight(self.base_model)

    def tell(self) -> str:
        """Both for a reader: "0.9 + 0.3"."""
        return " + ".join(self.written)


class Ramp(Record):
    """Weights that change from the first merged layer to the last, linear in the layer's number."""

    model: Ends
    base_model: Ends

    @field_validator("*", mode="before")
    @classmethod
    def _ends(cls, value: Any) -> Ends:
        return read_ends(value)

    def at(self, layer: int, layers: Sequence[int]) -> Weights:
        """The weights of one layer, between the ends to twelve digits after the point; of a single layer the first.

        Args:
            layer: one of the layers.
            layers: all that are merged, in order.
        """
        first, last = layers[0], layers[-1]
        share = (layer - first) / (last - first) if last > first else 0.0
        return Weights(model=_between(self.model, share), base_model=_between(self.base_model, share))

    @property
    def written(self) -> tuple[str, str]:
        """Both as model_args have them: "0.9:0.5" and "0.3", where the second does not change."""
        model, base_model = (write_weight(ends) for ends in (self.model, self.base_model))
        return model, base_model

    def tell(self) -> str:
        """Both for a reader: "0.9:0.5 + 0.3"."""
        return " + ".join(self.written)


def _form(value: Any) -> str:
    if isinstance(value, (Weights, Ramp)):
        return RAMP if isinstance(value, Ramp) else PAIR
    given = value.values() if isinstance(value, Mapping) else ()
    has_ends = any(isinstance(one, (list, tuple)) or (isinstance(one, str) and ":" in one) for one in given)
    return RAMP if has_ends else PAIR


AnyWeights = Annotated[
    Annotated[Weights, Tag(PAIR)] | Annotated[Ramp, Tag(RAMP)],
    Discriminator(_form),
]
"""Type of a field that holds either."""
_ADAPTER: TypeAdapter[Weights | Ramp] = TypeAdapter(AnyWeights)


def read_ends(value: Any) -> Ends:
    """A weight in the first layer and in the last: of one number, of two, or of text such as "0.9:0.5".

    Args:
        value: what was given.

    Raises:
        ValueError: saying what to write.
    """
    ends = value.split(":") if isinstance(value, str) and ":" in value else value
    if isinstance(ends, (list, tuple)):
        if len(ends) != 2 or any(isinstance(end, (list, tuple)) or end == "" for end in ends):
            raise ValueError(f"found {quoted(value)}, {_FORM}")
        return read_number(ends[0]), read_number(ends[1])
    number = read_number(ends)
    return number, number


def as_weights(weights: Weights | Ramp) -> Weights | Ramp:
    """The same, a ramp that does not change as the pair that it is.

    Args:
        weights: of either form.
    """
    if isinstance(weights, Weights) or any(first != last for first, last in (weights.model, weights.base_model)):
        return weights
    return Weights(model=weights.model[0], base_model=weights.base_model[0])


def read_weights(stored: Any) -> Weights | Ramp:
    """The weights that a spec's stored fields name.

    Args:
        stored: as `PlateauSpec.to_dict` gives them.

    Raises:
        ValueError: they are none.
    """
    try:
        return as_weights(_ADAPTER.validate_python(stored))
    except ValidationError as error:
        raise ValueError(f"found {quoted(stored)} as weights, expected {{model: 0.9, base_model: 0.3}}") from error


def write_weight(weight: float | Ends) -> str:
    """The shortest text that reads back as this weight: "0.9", "1", "0.9:0.5".

    Args:
        weight: a number, or both ends of a ramp.
    """
    if isinstance(weight, tuple):
        first, last = map(write_weight, weight)
        return first if weight[0] == weight[1] else f"{first}:{last}"
    return repr(int(weight)) if weight == int(weight) else repr(weight)


def _between(ends: Ends, share: float) -> float:
    """The ends themselves at 0 and 1."""
    first, last = ends
    if share in (0, 1) or first == last:
        return last if share == 1 else first
    return round(first * (1 - share) + last * share, 12)
