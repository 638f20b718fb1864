"""Every transaction of a node in the log, for ``DSM_LOG=debug``.

Owns the wrappers around the driver of the engine.  They are put there when the log is that detailed and only
then: without it, nothing of this lies on the way of a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsm.coherence.messages import Kind, Message, Send, SendPages
from dsm.errors import WireError
from dsm.log import logger
from dsm.manager.coherence import Coherence
from dsm.wire.header import Fields, unpack_coherence

_KINDS = {int(kind): kind.name for kind in Kind}


def trace(coherence: Coherence) -> None:
    """Log what this node's workers ask for, and every coherence message in and out."""
    fault, message, pages = coherence.fault, coherence.message, coherence.pages

    def traced_fault(region: int, page: int, write: bool, waiter: int, worker: int, ip: int) -> None:
        logger.debug(
            "worker %d: %s page %d of region %d", worker, "writes" if write else "reads", page, region
        )
        fault(region, page, write, waiter, worker, ip)

    def traced_message(link: Any, fields: Fields, payload: memoryview) -> None:
        _received(fields)
        message(link, fields, payload)

    def traced_pages(link: Any, fields: Fields) -> None:
        _received(fields)
        pages(link, fields)

    for name, function in (("fault", traced_fault), ("message", traced_message), ("pages", traced_pages)):
        setattr(coherence, name, function)
    for effect in (Send, SendPages):
        coherence.wrap_effect(effect, _sending)


def _sending(perform: Callable[[Any], None]) -> Callable[[Any], None]:
    def send(effect: Any) -> None:
        logger.debug("to node %d: %s", effect.node, _shown(effect.message))
        perform(effect)

    return send


def _received(fields: Fields) -> None:
    try:
        logger.debug("received: %s", _shown(unpack_coherence(fields)))
    except WireError:  # whoever takes the message complains
        logger.debug("received: a message of kind %d", fields[3])


def _shown(message: Message) -> str:
    kind = _KINDS.get(message.kind, f"kind {message.kind}")
    pages = f"region {message.region} page {message.page}+{message.count}"
    return f"{kind} {pages} request {message.request} of node {message.node} flags {message.flags:#x}"
