"""Runs the Python blocks of README.md and docs/ as tests, page by page."""

import doctest
import importlib.util

import keras
from coverage import Coverage
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser, SkipParser

collect_ignore_glob = ["docs/*.py"]


class PythonBlockParser(CodeBlockParser):
    """Turns each block into one test, with or without prompts."""

    language = "python"
    statements = PythonEvaluator()

    def evaluate(self, example):
        if not example.parsed.startswith(">>>"):
            return self.statements(example)
        place = example.path, example.line
        block = doctest.DocTestParser().get_doctest(example.parsed, {}, *place, None)
        block.globs = example.namespace
        problems = []
        # Long lines of output are wrapped on the pages.
        flags = doctest.NORMALIZE_WHITESPACE
        runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
        runner.run(block, out=problems.append, clear_globs=False)
        return "".join(problems)


def setup(namespace):
    """Defines the names for the conditions of skipped blocks."""
    namespace["backend"] = keras.backend.backend()
    namespace["missing"] = lambda name: importlib.util.find_spec(name) is None


def pytest_report_header():
    return f"keras {keras.__version__} on {keras.backend.backend()}"


def pytest_sessionfinish():
    # pytest-xdist kills a worker that has not exited after ten seconds, as on a busy
    # machine. The coverage that it would save on exit would be lost.
    if coverage := Coverage.current():
        coverage.save()


pytest_collect_file = Sybil(
    parsers=[PythonBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=setup,
).pytest()
