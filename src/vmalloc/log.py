# SPDX-License-Identifier: MIT
"""Log: what happens unasked, under the name `vmalloc` of the logging module, for who listens there.

Whoever set up logging has imported it; so nothing is imported here, and nothing is said where nobody did.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "log"]

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


def log(level: int, text: str, *args: Any) -> None:
    """Say it to the logger. It raises nothing: a message may be under way."""
    logging: Any = sys.modules.get("logging")
    try:
        logger = logging.getLogger("vmalloc")
        if not logger.handlers:  # else logging prints warnings that nobody asked for
            logger.addHandler(logging.NullHandler())
        logger.log(level, text, *args)
    except Exception:
        pass  # not imported, or only by half, or a handler failed: none of it is the caller's fault
