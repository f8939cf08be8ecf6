"""Test cases that cover all pairs of values, instead of all combinations."""

import pytest
from allpairspy import AllPairs


def pairwise(**values):
    """Parametrizes a test so that each pair of values of two arguments is in a case.

    This finds any fault that depends on two settings, with several times fewer cases
    than all combinations.
    """
    cases = [tuple(case) for case in AllPairs(list(values.values()))]
    return pytest.mark.parametrize(tuple(values), cases)
