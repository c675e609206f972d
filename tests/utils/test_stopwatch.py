import pytest

from utils.stopwatch import Stopwatch


def test_a_phase_within_another_counts_for_itself_alone():
    times = iter([0, 1, 3, 7, 15, 31, 63])
    watch = Stopwatch(now=lambda: next(times))
    with watch.timing("fit"), watch.timing("look"):  # from 1 to 15, from 3 to 7
        pass
    with pytest.raises(KeyError), watch.timing("look"):  # from 31 to 63, whatever happens in it
        raise KeyError
    assert watch.seconds == {"fit": 2 + 8, "look": 4 + 32}
