"""How connections to a lease server begin: two real engines, and all that must not authenticate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import AuthenticationError, DSMError, LimitError, WireError
from dsm.wire import handshake as nodes
from dsm.wire.lease_handshake import TOO_MANY, Client, Server, refusal

SECRET = b"the secret of this server"


def client(secret=SECRET, nonce=b"c" * 32):
    return Client(secret, nonce)


def server(secret=SECRET, nonce=b"s" * 32):
    return Server(secret, nonce)


def run(a, b, step=1 << 20, flip=None):
    """Carry bytes between client `a` and server `b`; `flip`: the bit that changes on its way."""
    outgoing, count = a.start(), 0
    engines = [b, a]
    while outgoing:
        data = bytearray(outgoing)
        if flip is not None and count <= flip // 8 < count + len(data):
            data[flip // 8 - count] ^= 1 << flip % 8
        count += len(data)
        outgoing = b"".join(engines[0].feed(bytes(data[i : i + step])) for i in range(0, len(data), step))
        engines.reverse()


@pytest.mark.parametrize("step", [1, 7, 40, 1 << 20])
@pytest.mark.parametrize("secret", [SECRET, None])
def test_both_sides_are_done(step, secret):
    a, b = client(secret), server(secret)
    run(a, b, step)
    assert a.done and b.done and a.leftover == b.leftover == b""


def test_bytes_behind_the_handshake_are_left_over():
    a, b = client(None), server(None)
    welcome = b.feed(a.start() + b"early")
    assert b.done and b.leftover == b"early"
    a.feed(welcome + b"reply")
    assert a.leftover == b"reply"


@pytest.mark.parametrize(
    ("mine", "its", "words"),
    [
        (None, SECRET, "asks for its secret"),
        (SECRET, None, "asks for no secret"),
        (SECRET, b"another one, long enough", "could not prove"),
    ],
)
def test_a_secret_on_one_side_only_is_told(mine, its, words):
    a, b = client(mine), server(its)
    with pytest.raises(AuthenticationError, match=words):
        run(a, b)
    assert not a.done


def test_who_is_refused_is_told_why():
    a, b = client(), server(b"another one, long enough")
    proof = a.feed(b.feed(a.start()))
    with pytest.raises(AuthenticationError):
        b.feed(proof)
    with pytest.raises(AuthenticationError, match="its secret is another one"):
        a.feed(b.refusal)
    full = client()
    full.start()
    with pytest.raises(LimitError, match="as many connections"):
        full.feed(refusal(TOO_MANY))


@pytest.mark.parametrize("flip", range(0, 4 * 40 * 8, 5))
def test_a_flipped_bit_never_authenticates_both(flip):
    a, b = client(), server()
    with pytest.raises((AuthenticationError, WireError, LimitError)):
        run(a, b, flip=flip)
    assert not (a.done and b.done)


def test_proofs_of_nodes_prove_nothing_here_and_the_other_way_round():
    a, b = nodes.Client(SECRET, b"c" * 32), server()
    with pytest.raises(WireError, match="lease service"):
        b.feed(a.start())
    peer = nodes.Server(SECRET, b"s" * 32, node=0, cluster=b"x" * 16)
    with pytest.raises(WireError, match="not the handshake of a dsm node"):
        peer.feed(client().start())


def test_our_own_bytes_sent_back_are_refused():
    a = client()
    with pytest.raises(WireError, match="HELLO"):
        a.feed(a.start())
    again = client()
    again.start()
    proof = again.feed(server().feed(client().start()))
    with pytest.raises(DSMError):
        again.feed(proof[:5] + b"\4" + proof[6:])


def test_a_recorded_proof_is_worth_nothing_later():
    a, b = client(), server()
    hello = a.start()
    proof = a.feed(b.feed(hello))
    b.feed(proof)
    later = server(nonce=b"t" * 32)
    later.feed(hello)
    with pytest.raises(AuthenticationError):
        later.feed(proof)


def test_another_version_is_named_from_the_first_bytes():
    b = server()
    with pytest.raises(WireError, match=r"version 9 .* this one version 1"):
        b.feed(b"DSML\x09")
    a = client()
    a.start()
    with pytest.raises(WireError, match="another version"):
        a.feed(b.refusal)


@given(st.lists(st.binary(max_size=90), max_size=6), st.integers(0, 6))
def test_arbitrary_bytes_never_authenticate(data, prefix):
    for engine in (client(), server()):
        if isinstance(engine, Client):
            engine.start()
        try:
            for piece in [b"DSML\1\2"[:prefix], *data]:
                engine.feed(piece)
        except DSMError as error:
            with pytest.raises(type(error)):
                engine.feed(b"DSML")
        assert not engine.done
