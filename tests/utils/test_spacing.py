import numpy as np

from utils.spacing import evenly, evenly_from_first_to_last, evenly_to_last


def test_a_few_of_many_are_spread_evenly_over_all():
    for size in range(30):
        items = list(range(100, 100 + size))
        for count in range(1, 40):
            first, last = evenly(items, count), evenly_to_last(items, count)
            both = evenly_from_first_to_last(items, count)
            assert len(first) == len(last) == len(both) == min(count, size)
            assert first[:1] == both[:1] == items[:1]
            assert last[-1:] == items[-1:]
            assert both[-1:] == items[-1:] or count == 1
            # Of the first two, what lies before or behind them is a step as well.
            ends = ([*first, 100 + size], [99, *last], both)
            for steps in map(np.diff, ends):
                assert size == 0 or not len(steps) or 1 <= steps.min() >= steps.max() - 1


def test_layers_are_those_at_the_ends_of_equal_parts():
    blocks = [f"blocks.{block}" for block in range(12)]
    assert evenly_to_last(blocks, 4) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    assert evenly_to_last(blocks[:3], 9) == blocks[:3]
    assert evenly_to_last(blocks, 1) == ["blocks.11"]
