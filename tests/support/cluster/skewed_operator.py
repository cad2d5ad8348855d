"""An operator on a machine whose clock is wrong. Usage: `skewed_operator.py SECONDS`."""

from __future__ import annotations

import datetime
import sys

SKEW = datetime.timedelta(seconds=float(sys.argv[1]))


class SkewedDatetime(datetime.datetime):
    """A datetime whose `now` is off by `SKEW`."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.now(tz) + SKEW


if __name__ == "__main__":
    from lora_operator import __main__, controller

    controller.datetime = SkewedDatetime
    sys.exit(__main__.main([]))
