"""Kubernetes quantities as numbers."""

from __future__ import annotations

from decimal import Decimal

MULTIPLES = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(10) ** 3, "M": Decimal(10) ** 6}
MULTIPLES |= {"G": Decimal(10) ** 9, "T": Decimal(10) ** 12}
MULTIPLES |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGT", start=1)}


def parse_quantity(text: str) -> Decimal:
    """Parse a Kubernetes quantity, for example 500m or 8Gi."""
    digits = text.rstrip("mkKMGTi")
    return Decimal(digits) * MULTIPLES[text[len(digits) :]]
