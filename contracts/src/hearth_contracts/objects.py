"""Large bodies, in chunks."""

from hearth_contracts.calls import Meta

#: A chunk, well under the broker's 1 MiB, and large enough that 1 GiB is 4,096 messages.
CHUNK_BYTES = 256 * 1024


class ObjectMeta(Meta):
    """The last message of an object (`object.v1`): from here on it exists."""

    id: str
    size: int
    chunks: int
    sha256: str
    content_type: str = "application/octet-stream"
