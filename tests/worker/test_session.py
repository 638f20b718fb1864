"""The conversation with a manager: numbers, descriptors, failures, interruptions."""

import os
import signal
import socket
import threading

import pytest

from dsm.errors import ClosedError, InternalError, NodeLostError, Status, UnknownNameError
from dsm.wire import control
from dsm.worker.session import Session, connect
from dsm.worker.watcher import Watcher

DEADLINE_S = 20


class Manager:
    """The other end of a socket pair."""

    def __init__(self, end):
        self.end = end
        self.end.settimeout(DEADLINE_S)

    def receive(self):
        return control.decode_call(self.end.recv(1 << 17))

    def answer(self, number, body, descriptors=()):
        socket.send_fds(self.end, [control.encode(control.Answer(number, body))], list(descriptors))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session = Session(ours, "@test")
    watcher = Watcher({session.fileno(): session.receive})
    yield session, Manager(theirs)
    session.lose(NodeLostError("the test is over"))
    watcher.stop()
    session.close()
    theirs.close()


def in_thread(function):
    """Run `function` in a thread; `result()` returns what it returned or raises what it raised."""
    box = {}

    def run():
        try:
            box["value"] = function()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        if "error" in box:
            raise box["error"]
        return box.pop("value")

    return result


def test_answers_find_their_calls_in_any_order(pair):
    session, manager = pair
    first = in_thread(lambda: session.call(control.ListNodes(), control.NodeList)[0])
    one = manager.receive()
    second = in_thread(lambda: session.call(control.ListRegions(), control.RegionList)[0])
    two = manager.receive()
    manager.answer(two.number, control.RegionList([]))
    assert second().regions == []
    manager.answer(one.number, control.NodeList([0, 1]))
    assert first().nodes == [0, 1]


def test_failed_is_its_exception(pair):
    session, manager = pair
    result = in_thread(lambda: session.call(control.ListNodes(), control.NodeList))
    manager.answer(manager.receive().number, control.Failed(Status.UNKNOWN_NAME, "no such thing"))
    with pytest.raises(UnknownNameError, match="no such thing"):
        result()


def test_an_answer_of_another_kind_is_an_internal_error(pair):
    session, manager = pair
    result = in_thread(lambda: session.call(control.ListNodes(), control.NodeList))
    manager.answer(manager.receive().number, control.Done())
    with pytest.raises(InternalError, match="Done"):
        result()


def test_descriptors_arrive_and_those_not_taken_are_closed(pair):
    session, manager = pair
    read, write = os.pipe()
    result = in_thread(lambda: session.call(control.ListNodes(), control.NodeList)[1])
    manager.answer(manager.receive().number, control.NodeList([]), [write])
    os.close(write)
    descriptors = result()
    assert len(descriptors) == 1
    del descriptors
    assert os.read(read, 1) == b""
    os.close(read)


def test_the_loss_of_the_manager_ends_every_call(pair):
    session, manager = pair
    results = [in_thread(lambda: session.call(control.ListNodes(), control.NodeList)) for _ in range(3)]
    for _ in results:
        manager.receive()
    manager.end.close()
    for result in results:
        with pytest.raises(NodeLostError, match="@test"):
            result()
    with pytest.raises(NodeLostError):
        session.call(control.ListNodes(), control.NodeList)


def test_a_call_that_a_close_overtakes_says_what_a_later_one_would(pair, monkeypatch):
    session, _ = pair
    encode = control.encode

    def close_first(call):
        session.lose(ClosedError("this process has closed its node"))
        session._socket.shutdown(socket.SHUT_RDWR)
        return encode(call)

    monkeypatch.setattr(control, "encode", close_first)
    with pytest.raises(ClosedError, match="has closed its node"):
        session.call(control.ListNodes(), control.NodeList)


def test_ctrl_c_ends_a_call_and_its_late_answer_is_undone(pair):
    session, manager = pair
    read, write = os.pipe()
    main = threading.get_ident()

    def interrupt():
        call = manager.receive()
        signal.pthread_kill(main, signal.SIGINT)
        return call

    interrupted = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.call(
            control.ListNodes(), control.NodeList, undo=lambda reply: control.DestroyRegion(reply.nodes[0])
        )
    manager.answer(interrupted().number, control.NodeList([7]), [write])
    os.close(write)
    undone = manager.receive()
    assert undone.body == control.DestroyRegion(7)
    assert os.read(read, 1) == b""  # the late descriptor was closed
    os.close(read)
    again = in_thread(lambda: session.call(control.ListNodes(), control.NodeList)[0])
    manager.answer(undone.number, control.Done())
    manager.answer(manager.receive().number, control.NodeList([8]))
    assert again().nodes == [8]


def test_what_is_done_on_arrival_is_done_in_order_and_its_error_is_the_callers(pair):
    session, manager = pair
    arrived = []

    def take(reply, descriptors):
        arrived.append(reply.nodes)
        if len(arrived) == 2:
            raise RuntimeError("no room")

    results = [
        in_thread(lambda: session.call(control.ListNodes(), control.NodeList, arrived=take)) for _ in range(2)
    ]
    numbers = [manager.receive().number for _ in results]
    for index, number in enumerate(numbers):
        manager.answer(number, control.NodeList([index]))
    outcomes = []
    for result in results:
        try:
            result()
            outcomes.append("ok")
        except RuntimeError as error:
            outcomes.append(str(error))
    assert arrived == [[0], [1]]
    assert sorted(outcomes) == ["no room", "ok"]


def test_garbage_ends_the_session(pair):
    session, manager = pair
    result = in_thread(lambda: session.call(control.ListNodes(), control.NodeList))
    manager.receive()
    manager.end.send(b"\xff\xff")
    with pytest.raises(InternalError, match="no answer"):
        result()


def test_nobody_there_is_refused():
    with pytest.raises(ConnectionRefusedError):
        connect(f"@dsm-nobody-{os.getpid()}")
