"""Tables of cases in which each pair of values meets, instead of all combinations."""

import pytest
from allpairspy import AllPairs


def pairwise(**values):
    """Parametrizes a test so that each two values of two arguments meet in a case.

    What breaks by the interplay of two settings shows as it does in the full table,
    which has several times as many cases.
    """
    cases = [tuple(case) for case in AllPairs(list(values.values()))]
    return pytest.mark.parametrize(tuple(values), cases)
