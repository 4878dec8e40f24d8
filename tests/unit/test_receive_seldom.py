"""Lines that anybody can cause."""

from __future__ import annotations

import logging

import pytest

from sorter.receive.seldom import MOST, Seldom


def test_a_kind_of_line_is_said_so_often_a_minute_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now, log = 100.0, logging.getLogger("sorter.test.seldom")
    seldom = Seldom(lambda: now)
    log.addFilter(seldom)
    try:
        for count in range(100):
            log.warning("%s broke the protocol: %s", "10.1.2.3", count)
        log.warning("another kind")
        assert len(caplog.messages) == MOST + 1
        now += 61
        log.warning("%s broke the protocol: %s", "10.1.2.4", "again")
        log.warning("another kind")
        says = f"10.1.2.4 broke the protocol: again ({100 - MOST} more of these were not told)"
        assert caplog.messages[MOST + 1 :] == [says, "another kind"]
        for count in range(MOST):
            log.warning("%s broke the protocol: %s", "10.1.2.3", count)
        assert len(caplog.messages) == 2 * MOST + 2
    finally:
        log.removeFilter(seldom)
