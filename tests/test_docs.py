"""Each shell line of README.md and docs/ names what exists.

Their Python blocks run as tests of their own: see conftest.py beside pyproject.toml.
"""

import configparser
import itertools
import pathlib
import re
import shlex
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("docs/*/*.md")]
BLOCK = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
# Python runs, sh is checked here. The rest is shown: what was printed, and Burn's Rust.
LANGUAGES = {"python", "sh", "text", "rust"}


def blocks():
    """(page, language, text) of each block; in braces are directives of the site."""
    for page in PAGES:
        for _, language, text in BLOCK.findall(page.read_text()):
            if not language.startswith("{"):
                yield page.relative_to(ROOT).as_posix(), language, text


COMMANDS = [
    pytest.param(command.strip(), id=f"{page}: {command.strip()}")
    for page, language, text in blocks()
    if language == "sh"
    for line in text.splitlines()
    for command in line.split("&&")
]


def environments():
    """The names of tox environments, with braces written out."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    found = set(re.split(r",\s*", config["tox"]["env_list"]))
    for section in config.sections():
        parts = re.split(r"\{([^}]*)\}", section.removeprefix("testenv:"))
        choices = [part.split(",") for part in parts]
        found |= {"".join(choice) for choice in itertools.product(*choices)}
    return found


def extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]


def installable():
    """Packages that the tests have seen, and tox, which runs them."""
    pins = (ROOT / "constraints.txt").read_text()
    return {"tox", *re.findall(r"^([\w-]+)==", pins, re.MULTILINE)}


def check_packages(packages):
    for package in packages:
        name, bracket, extra = package.rstrip("]").partition("[")
        assert name in {"keras-smoothl1", ".", *installable()}
        assert extra in extras() if bracket else True


def check_script(path, options):
    source = (ROOT / path).read_text() + (ROOT / "examples/shared.py").read_text()
    for option in options:
        assert not option.startswith("--") or f'"{option}"' in source


def check_tox(words):
    environment, rest = "", list(words)
    if rest[:1] == ["-e"]:
        environment, rest = rest[1], rest[2:]
        assert environment in environments()
    if rest[:2] == ["--", "python"]:
        check_script(rest[2], rest[3:])
    elif environment.startswith("example") and rest:
        check_script(rest[1], rest[2:])
    elif environment == "swap":
        check_script("examples/backend_swap.py", rest[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shell_line_names_what_exists(command):
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=\w+|export", words[0]):
        variable, _, value = words.pop(0).partition("=")
        if variable == "KERAS_BACKEND":
            assert value in ("jax", "torch", "tensorflow")
    match words:
        case []:
            pass
        case ["python", "-m", "pip", "install", *packages]:
            check_packages(packages)
        case ["python", "-m", "tox", "run", *rest]:
            check_tox(rest)
        case ["python", path, *options]:
            check_script(path, options)
        case ["torchrun", "--nproc-per-node", _, path, *options]:
            check_script(path, options)
        case _:
            pytest.fail(f"No check knows what {command!r} should name.")


def test_each_block_says_what_it_is():
    unknown = {
        (page, language) for page, language, _ in blocks() if language not in LANGUAGES
    }
    assert unknown == set()
