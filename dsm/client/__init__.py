"""Clients of the lease service: memory of a server, without mapping it.

Owns nothing but the map; knows neither nodes nor the shim, and needs no numpy.

=================  ==================================================================================
`sync`             `connect`, `LeaseClient`: a call returns with its answer
`asynchronous`     `connect_async`, `AsyncLeaseClient`: the same to await
`protocol`         its connection, with many requests under way
`lease`            `RemoteLease`, the handle; `async_lease`: `AsyncRemoteLease`
`pipeline`         many requests in one round trip
`connection`       one socket: the handshake, requests and replies, what happens when it breaks
`exchange`         several requests on one socket at once
`failures`         what a socket's errors become
`calls`            what is asked and how it is understood, for both kinds
`contents`         the bytes of a SET, which do not change while they are sent
`expiry`           the thread that tells of leases that have ended
`options`          address, secret and timeout from arguments and environment
=================  ==================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsm.client.calls import LeaseInfo
from dsm.client.lease import RemoteLease
from dsm.client.pipeline import Pipeline, Result
from dsm.client.sync import LeaseClient, connect

if TYPE_CHECKING:
    from dsm.client.asynchronous import AsyncLeaseClient, AsyncRemoteLease, connect_async

__all__ = [
    "AsyncLeaseClient",
    "AsyncRemoteLease",
    "LeaseClient",
    "LeaseInfo",
    "Pipeline",
    "RemoteLease",
    "Result",
    "connect",
    "connect_async",
]


def __getattr__(name: str) -> Any:
    """Import asyncio when it is first needed (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'dsm.client' has no attribute {name!r}")
    from dsm.client import asynchronous

    return getattr(asynchronous, name)
