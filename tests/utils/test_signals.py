"""Who hears what asks a process to stop."""

import signal

from utils.signals import TERMINATING, listening


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in TERMINATING]
    heard: list[int] = []
    with listening(lambda number, _: heard.append(number), TERMINATING):
        for number in TERMINATING:
            signal.raise_signal(number)
    assert heard == list(TERMINATING)
    assert [signal.getsignal(number) for number in TERMINATING] == before
