"""Marks intentional differences, and counts the calls of the loss by Keras's tests."""

import collections

import adapters
import differences
import pytest

# For each class of Keras's tests: the tests that ran the loss, and its calls.
LOSS_RUNS = pytest.StashKey()


def pytest_configure(config):
    config.stash[LOSS_RUNS] = collections.defaultdict(collections.Counter)
    config.addinivalue_line(
        "markers",
        "requires_trainable_backend: Keras's own, for inference-only backends",
    )


def pytest_collection_modifyitems(items):
    for item in items:
        difference = differences.find(item.path, item.nodeid.partition("::")[2])
        if difference:
            error = pytest.RaisesExc(difference.exception, match=difference.message)
            reason = difference.reason
            item.add_marker(pytest.mark.xfail(reason=reason, raises=error, strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = len(adapters.calls)
    result = yield
    if item.cls and item.path.name == "test_keras.py":
        calls = len(adapters.calls) - before
        if not calls:
            pytest.skip("never runs the loss")
        item.config.stash[LOSS_RUNS][item.parent.name].update(tests=1, calls=calls)
    return result


@pytest.fixture
def loss_runs(request):
    return request.config.stash[LOSS_RUNS]


def pytest_terminal_summary(terminalreporter, config):
    for name, count in config.stash[LOSS_RUNS].items():
        terminalreporter.write_line(
            f"{name}: {count['tests']} tests ran the loss {count['calls']} times"
        )
