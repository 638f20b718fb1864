"""The test vectors for clients in other languages are what this implementation says and understands."""

from pathlib import Path

import pytest

from dsm.wire import leases as wire
from dsm.wire.lease_handshake import Client, Server

VECTORS = Path(__file__).parents[1] / "vectors"


def _cases(name):
    cases, case = [], {}
    for line in [*(VECTORS / name).read_text().splitlines(), ""]:
        if line.startswith("#"):
            continue
        if line:
            word, _, value = line.partition(" ")
            case[word] = value
        elif case:
            cases.append(case)
            case = {}
    return [pytest.param(case, id=case["case"]) for case in cases]


def _bytes(text):
    return b"" if text == "-" else bytes.fromhex(text)


@pytest.mark.parametrize("case", _cases("leases.txt"))
def test_requests_and_replies(case):
    op, number, offset, count = (int(case[name]) for name in ("op", "number", "offset", "count"))
    token, payload = _bytes(case["id"]) + _bytes(case["key"]), _bytes(case["payload"])
    header = wire.request(op, number, payload=len(payload), offset=offset, count=count, token=token)
    assert header + payload == _bytes(case["request"])
    wire.check_request(op, 0, 0, len(payload), offset, count)

    reply = _bytes(case["reply"])
    answered, status, zero, again, size, a, b = wire.REPLY.unpack_from(reply)
    wire.check_reply((op, number), answered, status, zero, again, size, size)
    assert (status, a, b) == (int(case["status"]), int(case["a"]), int(case["b"]))
    assert reply[wire.REPLY_BYTES :] == _bytes(case["answer"])
    if status:
        assert wire.error_reply(op, number, status, _bytes(case["answer"]).decode()) == reply
    else:
        assert wire.reply(op, number, _bytes(case["answer"]), a, b) == reply


def test_every_op_has_a_case():
    assert {int(case.values[0]["op"]) for case in _cases("leases.txt")} == set(wire.Op)


@pytest.mark.parametrize("case", _cases("lease_handshake.txt"))
def test_handshakes(case):
    secret = _bytes(case["secret"]) or None
    client = Client(secret, _bytes(case["client-nonce"]))
    server = Server(secret, _bytes(case["server-nonce"]) or bytes(32))
    assert client.start() == _bytes(case["hello"])
    first = server.feed(_bytes(case["hello"]))
    if secret:
        assert first == _bytes(case["challenge"])
        assert client.feed(first) == _bytes(case["proof"])
        first = server.feed(_bytes(case["proof"]))
    assert first == _bytes(case["welcome"])
    client.feed(first)
    assert client.done and server.done
