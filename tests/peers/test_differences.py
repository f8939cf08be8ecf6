import re

import pytest
from differences import DIFFERENCES

CASES = [
    (file, pattern) for file, patterns in DIFFERENCES.items() for pattern in patterns
]


@pytest.mark.parametrize(("file", "pattern"), CASES)
def test_each_difference_matches_a_test(request, file, pattern):
    tests = [
        item.nodeid.partition("::")[2]
        for item in request.session.items
        if item.path.name == file
    ]
    if not tests:
        pytest.skip("for another backend")
    assert any(re.fullmatch(pattern, test) for test in tests)
