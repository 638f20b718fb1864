import pytest

import dsm


@pytest.fixture(scope="module")
def node():
    with dsm.attach() as node:
        yield node


@pytest.fixture(scope="module")
def server(node):
    with dsm.Server(size="64M", node=node) as server:
        yield server


@pytest.fixture
def client(server):
    with dsm.connect(server.address, timeout=20) as client:
        yield client
