"""How a signal's values are stored, and by how much a value that is read may differ from the original.

A signal is a teacher output such as logits. `AnyCodec` lists the codecs: to add a codec, add a file beside this one and
a name in that union.
"""

from typing import Annotated

from dhkd.data.cache.codecs.base import Codec
from dhkd.data.cache.codecs.bounds import Bounds
from dhkd.data.cache.codecs.coding import decode, encode, row_bytes
from dhkd.data.cache.codecs.floats import Float
from dhkd.data.cache.codecs.int8 import Int8
from dhkd.data.cache.codecs.top_k import TopK
from pydantic import Field

__all__ = ["AnyCodec", "Bounds", "Codec", "Float", "Int8", "TopK", "decode", "encode", "row_bytes"]

# The codecs that a manifest may name; pydantic chooses the class by `kind`.
AnyCodec = Annotated[Float | Int8 | TopK, Field(discriminator="kind")]
