"""Shell commands on the pages name files, options and environments that exist.

The Python blocks of the pages run as separate tests; see conftest.py in the root.
"""

import configparser
import itertools
import pathlib
import re
import shlex
import tomllib

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md", "examples/*.md")
    for page in sorted(ROOT.glob(pattern))
]
# Python blocks run, and sh blocks are checked here. Others are output, or Burn's Rust.
LANGUAGES = {"python", "sh", "text", "rust"}
BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^[ >]*(?:`{3,}|~{3,}|:{3,})(.*)$", re.MULTILINE)
# The script that receives the options of an environment.
SCRIPTS = {
    "accuracy": "benchmarks/accuracy.py",
    "bench": "benchmarks/speed.py",
    "demo": "examples/flight_delays.py",
    "swap": "examples/backend_swap.py",
}


def read(page):
    return page.read_text(encoding="utf-8")


COMMANDS = [
    pytest.param(command.strip(), id=f"{page.name}: {command.strip()}")
    for page in PAGES
    for _, text in BLOCK.findall(read(page))
    for line in text.splitlines()
    for command in line.split("&&")
]


def tox_config():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    return config


def labels():
    """The environments of each label."""
    lines = tox_config()["tox"]["labels"].strip().splitlines()
    return {
        label.strip(): expand_braces(names)
        for label, names in (line.split("=") for line in lines)
    }


def environments():
    """The names of all environments. A label does not define one."""
    config = tox_config()
    found = expand_braces(config["tox"]["env_list"])
    for section in config.sections():
        if section.startswith("testenv:"):
            found |= expand_braces(section.removeprefix("testenv:"))
    return found


def expand_braces(text):
    """The names in a list such as `docs, {lowest,nightly}-jax`."""
    found = set()
    for name in re.findall(r"(?:\{[^}]*\}|[^\s,{])+", text):
        choices = [part.split(",") for part in re.split(r"\{([^}]*)\}", name)]
        found |= {"".join(choice) for choice in itertools.product(*choices)}
    return found


def project():
    return tomllib.loads(read(ROOT / "pyproject.toml"))["project"]


def extras():
    return project()["optional-dependencies"]


def pins(python="3.11"):
    """The tested versions of packages on a Python version."""
    lines = read(ROOT / "constraints.txt").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in found
        if pin.marker is None or pin.marker.evaluate({"python_version": python})
    }


def check_packages(packages):
    for package in packages:
        name, bracket, extra = package.rstrip("]").partition("[")
        assert name in {"keras-smoothl1", ".", "tox", "pre-commit", *pins()}
        assert extra in extras() if bracket else True


def check_script(path, words):
    """The words after a script must be its options, each with at most one value."""
    source = read(ROOT / path) + read(ROOT / "examples/command_line.py")
    for before, word in itertools.pairwise(["", *words]):
        if word.startswith("--"):
            assert word == "--help" or f'"{word}"' in source
        else:
            assert before.startswith("--")


def check_tests(words):
    match words:
        case [path] | [path, "-k", _]:
            assert (ROOT / path).is_file()
        case _:
            pytest.fail(f"There is no check for {words}.")


def check_tox(words):
    match words:
        case []:
            return
        case ["-m", label]:
            assert label in labels()
            return
        case ["-e", environment, *rest]:
            assert environment in environments()
    match rest:
        case ["--", *tests] if environment in extras():
            check_tests(tests)
        case ["--", "python", path, *options]:
            check_script(path, options)
        case ["--", path, *options] if environment.startswith("example"):
            check_script(path, options)
        case ["--", *options]:
            check_script(SCRIPTS[environment.partition("-")[0]], options)
        case _:
            assert rest == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shell_command_uses_only_existing_names(command):
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=\w+|export", words[0]):
        word = words.pop(0)
        assert word in {"export", *(f"KERAS_BACKEND={name}" for name in extras())}
    match words:
        case []:
            pass
        case ["python", "-m", "pip", "install", *packages]:
            check_packages(packages)
        case ["python", "-m", "tox", "run", *rest]:
            check_tox(rest)
        case ["python", "-m", "pytest", *rest]:
            check_tests(rest)
        case ["python", "-m", "keras_smoothl1"] | ["pre-commit", "install"]:
            pass
        case ["python", path, *options]:
            check_script(path, options)
        case ["torchrun", "--nproc-per-node", _, path, *options]:
            check_script(path, options)
        case _:
            pytest.fail(f"There is no check for {command!r}.")


def test_labels_name_environments():
    assert set().union(*labels().values()) <= environments()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_code_block_has_a_known_language(page):
    kinds = {kind for kind in FENCE.findall(read(page)) if not kind.startswith("{")}
    assert kinds <= {"", *LANGUAGES}
    assert not re.search(r"\{(code|doctest)", read(page))


def test_the_table_of_versions_matches_the_project():
    table = read(ROOT / "README.md").partition("## Supported versions")[2]
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")]
        for line in re.findall(r"^\|(.*)\|$", table, re.MULTILINE)
    )
    backends = extras().keys() - {"all"}
    assert {name.lower() for name in header[2:]} == backends
    oldest = re.search(r"lowest: .* keras==(\S+)", read(ROOT / "tox.ini"))[1]
    pythons = {row[0] for row in rows}
    for python, keras, *versions in rows:
        if keras.startswith("nightly"):
            continue
        assert keras in (oldest, pins(python)["keras"])
        for name, version in zip(header[2:], versions, strict=True):
            assert version.startswith(pins(python)[name.lower()])
    prefix = "Programming Language :: Python :: "
    supported = {line for line in project()["classifiers"] if prefix in line}
    assert {prefix + python for python in pythons} == supported
    assert f"python{project()['requires-python']}" == f"python>={min(pythons)}"
    (keras,) = project()["dependencies"]
    assert keras == f"keras>={oldest.removesuffix('.0')}"
