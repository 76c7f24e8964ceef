"""What a section's JSON holds, as far as the page and `faults` read it; checked before either does."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plam_eval.errors import quoted, validation_problems

Measured = Annotated[float, Field(gt=0)]
Rounds = Annotated[list[Measured], Field(min_length=1)]
BySize = Annotated[dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$")], Rounds], Field(min_length=1)]


class _Part(BaseModel):
    """Takes no text for a number, and neither NaN nor infinity; what nobody reads may be anything."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Spread(_Part):
    median: float
    least: float
    most: float


class _Way(_Spread):
    name: str = Field(alias="is")
    unit: str
    rounds: Rounds


class _Row(_Part):
    what: str
    A: _Way
    B: _Way
    ratio: _Spread
    ideal: float | None
    ideal_is: str = Field(alias="ideal is")
    more: dict[str, str | bool | int | float | None]


class _Series(_Part):
    name: str
    axis: str
    said: str
    unexplained: bool
    seconds: BySize
    memory: BySize
    slope_of_time: _Spread = Field(alias="slope of time")
    slope_of_memory: _Spread = Field(alias="slope of memory")


class _Raw(_Part):
    series: list[_Series] = []


class _Record(_Part):
    section: str
    quick: bool
    at: str
    took: Annotated[float, Field(ge=0)]
    others: float | None
    commit: str
    code: str
    command: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    setting: str
    rows: list[_Row]
    raw: _Raw


def problems_of(record: dict[str, Any], section: str) -> list[str]:
    """Why a record cannot be shown, in words; nothing where it can.

    Args:
        record: what a section's JSON holds.
        section: whose it should be.
    """
    try:
        found = _Record.model_validate(record)
    except ValidationError as error:
        return [f"{field}: {text}" for field, text in validation_problems(error, {})]
    if found.section != section:
        return [f"section: found {quoted(found.section)}, expected {section!r}"]
    return [] if found.rows or found.raw.series else ["rows: found none, nor a series; expected figures"]
