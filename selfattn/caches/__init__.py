"""Caches of keys and values, for decoding: what comes is appended, and attended to in place.

    storage.py     how rows lie in memory: of a dtype, or of int8 with a scale for each row
    contiguous.py  KVCache: a batch of sequences, each with room of its own
    paged.py       PagedKVCache: sequences of any length that share one pool of pages
    pages.py       the pool's pages: which are free, which are shared
    attend.py      a query's attention to what either holds
    cascade.py     a prefix that sequences share, attended to once for the queries of all

Attention itself is `_core`'s, as everywhere: a cache is a problem whose keys lie in pages, or whose
rows have scales (csrc/selfattn.h).
"""

from .contiguous import KVCache
from .paged import PagedKVCache

__all__ = ["KVCache", "PagedKVCache"]
