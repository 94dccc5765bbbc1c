"""What recipe sections are made of: their base class, and texts that name an entry of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rl4dlm.recipe.plain_values import refuse_truth_for_numbers, refuse_unusable


class Config(BaseModel):
    """Base of every recipe section: an unknown key is an error and a parsed recipe never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, values: Any) -> Any:
        refuse_truth_for_numbers(values, cls.model_fields)
        return values

    @field_validator("*", mode="after")
    @classmethod
    def _usable(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_unusable(value, cls.model_fields[str(info.field_name)])
        return value


class OneOf:
    """A text that names an entry of a table, or is one of a few other words; asked when a value comes.

    Example: `remasking: Annotated[str, OneOf(SAMPLERS)]`.
    """

    def __init__(self, table: Mapping[str, object], *others: str) -> None:
        self._table, self._others = table, others

    @property
    def choices(self) -> list[str]:
        """What the text may be."""
        return [*self._others, *self._table]

    def check(self, value: object) -> str:
        """The text, if it is known.

        Raises:
            PydanticCustomError: it is not, or is no text.
        """
        if isinstance(value, str) and value in self.choices:
            return value
        *most, last = (f"'{choice}'" for choice in self.choices)
        raise PydanticCustomError(
            "unknown_name", "Input should be {expected}", {"expected": f"{', '.join(most)} or {last}"}
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "enum": self.choices}
