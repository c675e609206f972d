"""Whether somebody is there, without waiting for long."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

ANSWER_TIMEOUT = 4.0  # seconds


def answers(address: str) -> bool:
    """Whether a service answers a request at all, and is not broken."""
    answered = False

    def ask() -> None:
        nonlocal answered
        try:
            urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT).close()
            answered = True
        except urllib.error.HTTPError as error:
            answered = error.code < 500
        except urllib.error.URLError as error:
            # It is there; whether its certificate is one to trust others decide.
            answered = isinstance(error.reason, ssl.SSLError)
        except (OSError, ValueError, http.client.HTTPException):
            # The time is over; no address; what answers speaks another language.
            pass

    # The timeout of the connection does not cover the look-up of the name.
    ends_within(ANSWER_TIMEOUT, ask)
    return answered


def ends_within(seconds: float, work: Callable[[], object]) -> bool:
    """Works on a thread, which is left behind when the time is over.

    Returns:
        Whether it came to its end, which an error keeps it from.
    """
    ended = False

    def try_it() -> None:
        nonlocal ended
        with suppress(Exception):
            work()
            ended = True

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(seconds)
    return ended
