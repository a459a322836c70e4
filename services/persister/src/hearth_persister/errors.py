"""What can go wrong in the persister, as one small tree.

PersisterError
├── StoreError          a store would not take or give something: its line backs off, the others go on
│   ├── ObjectCorrupt   bytes are not those that were announced
│   └── KeyMissing      the store holds nothing under this key
├── Overtaken           another persister wrote this part of the chain first
└── SegmentCorrupt      a segment is not what was written
"""

from typing import ClassVar


class PersisterError(Exception):
    """Something went wrong in the persister."""

    code: ClassVar[str] = "E_PERSISTER"


class StoreError(PersisterError):
    """A store would not take or give something."""

    code = "E_STORE"


class ObjectCorrupt(StoreError):
    """The bytes are not those that were announced."""

    code = "E_STORE_CORRUPT"


class KeyMissing(StoreError):
    """The store holds nothing under this key."""

    code = "E_STORE_MISSING"


class Overtaken(PersisterError):
    """Another persister wrote this part of the chain first."""

    code = "E_OVERTAKEN"


class SegmentCorrupt(PersisterError):
    """A segment is not what was written."""

    code = "E_SEGMENT_CORRUPT"
