"""Two real engines over a fake link; and everything that must not authenticate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import AuthenticationError, InternalError, WireError
from dsm.wire.handshake import NO_CLUSTER, NO_NODE, Client, Peer, Server
from dsm.wire.header import VERSION

SECRET = b"the secret of this cluster"
CLUSTER = bytes(range(16))
#: Bytes of the four messages, and which side sends each.
HELLO, CHALLENGE, PROOF, WELCOME = 60, 60, 38, 38


def client(secret=SECRET, nonce=b"c" * 32, **more):
    return Client(secret, nonce, **more)


def server(secret=SECRET, nonce=b"s" * 32, **more):
    return Server(secret, nonce, **{"node": 0, "epoch": 7, "cluster": CLUSTER, **more})


def run(a, b, *, to_server=lambda data: data, to_client=lambda data: data, step=1 << 20):
    """Carry bytes between client `a` and server `b` until neither sends; raises what they raise."""
    outgoing, incoming = a.start(), b""
    while outgoing or incoming:
        for data in pieces(to_server(outgoing), step):
            incoming += b.feed(data)
        outgoing = b""
        for data in pieces(to_client(incoming), step):
            outgoing += a.feed(data)
        incoming = b""


def pieces(data, step):
    return [data[i : i + step] for i in range(0, len(data), step)]


@pytest.mark.parametrize("step", [1, 7, 60, 1 << 20])
def test_both_sides_are_done_and_know_each_other(step):
    a, b = client(node=3, epoch=5, cluster=CLUSTER), server()

    run(a, b, step=step)

    assert a.done and b.done
    assert a.peer == Peer(0, 7, CLUSTER)
    assert b.peer == Peer(3, 5, CLUSTER)
    assert a.leftover == b.leftover == b""


def test_a_joining_node_needs_neither_number_nor_cluster():
    a, b = client(), server()
    run(a, b)
    assert b.peer == Peer(NO_NODE, 0, NO_CLUSTER)
    assert a.peer.cluster == CLUSTER


def test_nobody_is_believed_before_the_proof():
    a, b = client(node=1), server()
    challenge = b.feed(a.start())
    assert not b.done and b.peer is None
    proof = a.feed(challenge)
    assert not a.done and a.peer is None
    assert b.feed(proof[:-1]) == b"" and not b.done


def test_messages_have_fixed_sizes():
    a, b = client(), server()
    hello = a.start()
    challenge = b.feed(hello)
    proof = a.feed(challenge)
    welcome = b.feed(proof)
    assert [len(m) for m in (hello, challenge, proof, welcome)] == [HELLO, CHALLENGE, PROOF, WELCOME]


def test_bytes_after_the_handshake_are_left_over():
    a, b = client(), server()
    proof = a.feed(b.feed(a.start()))
    a.feed(b.feed(proof + b"early") + b"frames")
    b.feed(b" more")
    assert a.leftover == b"frames"
    assert b.leftover == b"early more"


def test_wrong_secret_is_refused_and_the_client_is_told():
    a, b = client(secret=b"another secret, long enough"), server()
    proof = a.feed(b.feed(a.start()))
    with pytest.raises(AuthenticationError, match=r"could not prove .* same DSM_SECRET"):
        b.feed(proof)
    assert not b.done and b.peer is None
    with pytest.raises(AuthenticationError, match="refuses this one: our secret is not"):
        a.feed(b.refusal)


def test_a_server_without_the_secret_does_not_convince_the_client():
    a, b = client(), server(secret=b"another secret, long enough")
    a.feed(b.feed(a.start()))
    forged = bytes.fromhex("44534d48") + bytes([VERSION, 4]) + bytes(32)
    with pytest.raises(AuthenticationError, match="could not prove"):
        a.feed(forged)
    assert not a.done


def test_other_cluster_is_named_on_both_sides():
    a, b = client(cluster=b"x" * 16), server()
    with pytest.raises(
        AuthenticationError, match=f"cluster {(b'x' * 16).hex()}, this node to {CLUSTER.hex()}"
    ):
        b.feed(a.start())
    with pytest.raises(AuthenticationError, match="another cluster"):
        a.feed(b.refusal)


def test_the_client_compares_clusters_too():
    a, b = client(cluster=b"x" * 16), server()
    hello = bytearray(a.start())
    hello[12:28] = NO_CLUSTER
    challenge = b.feed(bytes(hello))
    with pytest.raises(AuthenticationError, match="check the address"):
        a.feed(challenge)


def test_other_version_names_both_and_is_known_from_the_first_bytes():
    a, b = client(), server()
    hello = bytearray(a.start())
    hello[4] = VERSION + 1
    with pytest.raises(WireError, match=f"version {VERSION + 1} .*, this node version {VERSION}"):
        b.feed(bytes(hello[:6]))
    with pytest.raises(AuthenticationError, match="another version"):
        a.feed(b.refusal)


@pytest.mark.parametrize("garbage", [b"G", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"DSMX", b"SSH-2.0-x"])
def test_other_protocols_are_refused_at_once(garbage):
    with pytest.raises(WireError, match="not the handshake of a dsm node"):
        server().feed(garbage)


def test_a_peer_that_claims_our_number_is_refused():
    with pytest.raises(AuthenticationError, match="node 0, which is this node's own"):
        server().feed(client(node=0).start())
    with pytest.raises(AuthenticationError, match="node 64, which is not below 64"):
        server().feed(client(node=64).start())


def test_reflected_hello_is_refused():
    a = client()
    hello = a.start()
    with pytest.raises(WireError, match=r"HELLO where the handshake has CHALLENGE.*our own bytes back"):
        a.feed(hello)


def test_reflected_nonce_is_refused_even_as_a_challenge():
    a = client(cluster=CLUSTER)
    challenge = bytearray(a.start())
    challenge[5] = 2
    with pytest.raises(AuthenticationError, match="our own challenge back"):
        a.feed(bytes(challenge))


def test_reflected_proof_is_no_welcome():
    a, b = client(), server()
    proof = bytearray(a.feed(b.feed(a.start())))
    proof[5] = 4
    with pytest.raises(AuthenticationError, match="could not prove"):
        a.feed(bytes(proof))


def test_replayed_connection_is_refused():
    a, first = client(), server()
    hello = a.start()
    proof = a.feed(first.feed(hello))
    first.feed(proof)
    assert first.done

    second = server(nonce=b"t" * 32)
    second.feed(hello)
    with pytest.raises(AuthenticationError, match="could not prove"):
        second.feed(proof)


def test_replayed_welcome_is_refused():
    a, b = client(), server()
    challenge = b.feed(a.start())
    welcome = b.feed(a.feed(challenge))

    again = client(nonce=b"d" * 32)
    again.start()
    again.feed(challenge)
    with pytest.raises(AuthenticationError, match="could not prove"):
        again.feed(welcome)


@pytest.mark.parametrize("position", range(HELLO + CHALLENGE + PROOF + WELCOME))
def test_a_flipped_bit_never_authenticates_both(position):
    class Link:
        def __init__(self, start):
            self.position = position - start

        def __call__(self, data):
            out = bytearray(data)
            if 0 <= self.position < len(data):
                out[self.position] ^= 1 << position % 8
            self.position -= len(data)
            return bytes(out)

    # Positions count HELLO, PROOF on the way there, then CHALLENGE, WELCOME on the way back.
    a, b = client(node=1, cluster=CLUSTER), server()
    with pytest.raises((AuthenticationError, WireError)):
        run(a, b, to_server=Link(0), to_client=Link(HELLO + PROOF))
        raise AssertionError("authenticated")
    assert not (a.done and b.done)


@given(data=st.lists(st.binary(max_size=80), max_size=6), prefix=st.integers(0, 6))
def test_arbitrary_bytes_never_authenticate(data, prefix):
    good = b"DSMH" + bytes([VERSION, 1])
    for engine in (client(), server()):
        if isinstance(engine, Client):
            engine.start()
        try:
            for piece in [good[:prefix], *data]:
                engine.feed(piece)
        except (AuthenticationError, WireError) as error:
            assert str(error)
        assert not engine.done


def test_a_failed_engine_stays_failed():
    b = server()
    with pytest.raises(WireError) as first:
        b.feed(b"nonsense")
    with pytest.raises(WireError) as second:
        b.feed(client().start())
    assert first.value is second.value


def test_an_unauthenticated_refusal_is_all_a_client_believes():
    a = client()
    a.start()
    assert a.feed(b"DSMH" + bytes([VERSION, 5])) == b""
    with pytest.raises(AuthenticationError, match="no reason this version knows"):
        a.feed(b"\xff")


def test_a_server_does_not_take_refusals():
    with pytest.raises(WireError, match="REFUSE where the handshake has HELLO"):
        server().feed(b"DSMH" + bytes([VERSION, 5, 1]))


def test_misuse_by_the_caller_is_told():
    with pytest.raises(InternalError, match="nonce has 32 bytes, not 5"):
        client(nonce=b"short")
    with pytest.raises(InternalError, match="must know its cluster"):
        server(cluster=NO_CLUSTER)
    with pytest.raises(InternalError, match="needs a secret"):
        client(secret=b"")
    with pytest.raises(InternalError, match="16 bytes"):
        client(cluster=b"x")
    a = client()
    with pytest.raises(InternalError, match="before start"):
        a.feed(b"D")
    a.start()
    with pytest.raises(InternalError, match="twice"):
        a.start()
