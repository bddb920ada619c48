"""Copying a cache to another store, with another codec, or to another place."""

import logging
from collections.abc import Mapping

from dhkd.data.cache import codecs
from dhkd.data.cache.blocks import WITNESS, Array, Block
from dhkd.data.cache.codecs import Codec
from dhkd.data.cache.manifest import Identity, Manifest, teachers_own
from dhkd.data.cache.reader import LogitReader
from dhkd.data.cache.writer import LogitWriter
from dhkd.data.errors import ConfigError
from dhkd.data.progress import progress

log = logging.getLogger("dhkd")


def converted(reader: LogitReader, codec: Codec | None, *, allow_loss: bool) -> Manifest:
    """Build the manifest of a copy of the cache in which `codec` stores the signals.

    If `codec` is None, all signals keep their codec; if `codec` is for logits only, the other signals keep their
    codecs. Raises `ConfigError` if the conversion is impossible, or if it loses information and `allow_loss` is false.
    """
    manifest, signals, provenance = reader.manifest, {}, dict(reader.manifest.provenance)
    for name, signal in manifest.signals.items():
        if codec is None or codec == signal.codec or (codec.logits_only and teachers_own(name) != "logits"):
            signals[name] = signal
            continue
        if signal.codec.kept is not None:
            raise ConfigError(
                f"--codec: {name} of {reader.location} holds {signal.codec.kept} logits of a row, which no other codec"
                f" can be made of; cache the teacher again"
            )
        if not (codec.lossless or allow_loss):
            raise ConfigError(
                f"--codec: from {signal.codec.kind} to {codec.kind} loses information for good; say --allow-loss, or"
                f" choose float32"
            )
        signals[name] = signal.model_copy(update={"codec": codec})
        provenance[name] = {
            **_recorded(provenance.get(name)),
            "codec_before": signal.codec.kind,
            "error_before": reader.bound(name).error,
        }
    identity = Identity(dataset=manifest.identity.dataset, recipe=manifest.identity.recipe, signals=signals)
    return Manifest.model_validate(
        {**manifest.to_json(), "identity": identity.model_dump(mode="json"), "provenance": provenance}
    )


def _recorded(provenance: object) -> Mapping[str, object]:
    """Return a signal's provenance, or nothing if it isn't the JSON object that dhkd records."""
    return provenance if isinstance(provenance, Mapping) else {}


def convert_blocks(reader: LogitReader, writer: LogitWriter) -> int:
    """Write every missing block, check all blocks, and finish the new cache; return the number of blocks written."""
    fresh: set[Block] = set()
    while True:
        missing = writer.missing()
        with progress("converting", sum(map(len, missing)), visible=True) as advance:
            for block in missing:
                for name in writer.manifest.names:
                    writer.put(block, name, _converted(reader, writer.manifest, block, name))
                advance(len(block))
        fresh.update(missing)
        damages = writer.complete(fresh)
        if not damages:
            return len(fresh)
        for damage in damages:
            log.warning("cache at %s: %s; its block is written again", writer.location, damage)


def _converted(reader: LogitReader, manifest: Manifest, block: Block, name: str) -> dict[str, Array]:
    """Read one block of an array, and encode it with the array's codec in `manifest`, the new cache's manifest."""
    parts = reader.stored(block, name)
    if name == WITNESS or manifest.signals[name].codec == reader.manifest.signals[name].codec:
        return parts
    old, new = reader.manifest.signals[name], manifest.signals[name]
    return codecs.encode(new.codec, name, block, codecs.decode(old.codec, parts, old.row))
