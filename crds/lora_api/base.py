"""Base classes of all models, and field types that pydantic does not have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
"""Strict types. Like the API server, they accept neither "5" for 5 nor "yes" for true."""

REAL_PATTERN = r"^[0-9]{1,16}(\.[0-9]{1,16})?([eE][-+]?[0-9]{1,2})?$"


class Model(BaseModel):
    """A frozen model with camelCase names on the wire that refuses fields it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def __hash__(self) -> int:
        # pydantic copies a default that cannot be hashed, such as a model with a list, for every model that it creates.
        # The type is enough: equal models have equal hashes.
        return hash(type(self))

    def to_wire(self) -> dict[str, Any]:
        """Return the model as JSON-ready data with camelCase names and with every default filled in.

        Fields that are None are omitted, because null removes a field in a merge patch.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Lenient(Model):
    """A model for what other versions of the operator may have written: unknown fields are dropped."""

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True)
class Real:
    """A non-negative real number, a string on the wire (as Kubernetes' API conventions ask).

    Use as ``Annotated[Decimal, Real(gt="0", le="10")]``. The bounds are checked by the model and, as a
    CEL rule, by the API server.
    """

    gt: str | None = None
    ge: str | None = None
    le: str | None = None

    def bounds(self) -> str:
        """Describe the bounds for an error message."""
        words = [("above", self.gt), ("at least", self.ge), ("at most", self.le)]
        return " and ".join(f"{word} {bound}" for word, bound in words if bound is not None)

    def parse(self, value: object) -> Decimal:
        """Convert a string on the wire, or a Decimal, and check its bounds."""
        if isinstance(value, Decimal):
            number = value
        elif isinstance(value, str) and re.fullmatch(REAL_PATTERN, value):
            number = Decimal(value)
        else:
            raise ValueError('must be a number in quotes, for example "0.5" or "1e-4"')
        above = self.gt is None or number > Decimal(self.gt)
        at_least = self.ge is None or number >= Decimal(self.ge)
        at_most = self.le is None or number <= Decimal(self.le)
        if not (above and at_least and at_most):
            raise ValueError(f"must be {self.bounds()}")
        return number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(_wire_form, when_used="json"),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        bounds = [(">", self.gt), (">=", self.ge), ("<=", self.le)]
        rule = " && ".join(f"double(self) {op} {float(bound)}" for op, bound in bounds if bound is not None)
        result: JsonSchemaValue = {"type": "string", "maxLength": 40, "pattern": REAL_PATTERN}
        if rule:
            result["x-kubernetes-validations"] = [{"rule": rule, "message": f"must be {self.bounds()}"}]
        return result


def _wire_form(number: Decimal) -> str:
    """Write equal numbers as equal texts, so that "1e-4" and "0.0001" give the same input hash."""
    return str(number.normalize())
