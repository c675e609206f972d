"""Checks whether a service can be reached, without waiting for long."""

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
    """Whether a service answers requests, and not with a server error."""
    answered = False

    def ask() -> None:
        nonlocal answered
        try:
            urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT).close()
            answered = True
        except urllib.error.HTTPError as error:
            answered = error.code < 500
        except urllib.error.URLError as error:
            # It answers; whether to trust its certificate is decided elsewhere.
            answered = isinstance(error.reason, ssl.SSLError)
        except (OSError, ValueError, http.client.HTTPException):
            # Timeout, no address, or an answer that is not HTTP.
            pass

    # The timeout of the connection does not include the DNS look-up.
    ends_within(ANSWER_TIMEOUT, ask)
    return answered


def ends_within(seconds: float, work: Callable[[], object]) -> bool:
    """Runs `work` in a thread, which is abandoned after `seconds`.

    Returns:
        Whether it finished in time and without an error.
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
