"""Settings from the environment."""

import pytest

from dsm.config import lease_bytes, page_timeout
from dsm.errors import UsageError
from dsm.limits import PAGE_TIMEOUT_S


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, PAGE_TIMEOUT_S), ("", PAGE_TIMEOUT_S), ("2.5", 2.5), ("0", 0), ("inf", 0)]
)
def test_page_timeout(text, seconds):
    assert page_timeout({} if text is None else {"DSM_PAGE_TIMEOUT": text}) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_page_timeout_that_is_no_time(text):
    with pytest.raises(UsageError, match=f"DSM_PAGE_TIMEOUT is '{text}'"):
        page_timeout({"DSM_PAGE_TIMEOUT": text})


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("", None), ("2G", 2 << 30), ("4096", 4096), ("0", 0)]
)
def test_lease_bytes(text, size):
    assert lease_bytes({} if text is None else {"DSM_LEASE_BYTES": text}) == size


@pytest.mark.parametrize("text", ["much", "-1", "1.5", "2X"])
def test_lease_bytes_that_are_no_size(text):
    with pytest.raises(UsageError, match=f"DSM_LEASE_BYTES is '{text}'"):
        lease_bytes({"DSM_LEASE_BYTES": text})
