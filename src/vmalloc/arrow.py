# SPDX-License-Identifier: MIT
"""pyarrow tables in regions: `vmalloc.arrow.put(table)`."""

from vmalloc.adapters.arrow import put

__all__ = ["put"]
