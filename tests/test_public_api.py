"""What users rely on changes only together with CHANGELOG.md, and so do releases."""

import inspect
import pathlib
import re
import runpy

import pytest

import keras_smoothl1
import keras_smoothl1.losses
import keras_smoothl1.metrics

ROOT = pathlib.Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
NAMES = [name for name in keras_smoothl1.__all__ if name != "__version__"]


def signature(name):
    parameters = inspect.signature(getattr(keras_smoothl1, name)).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return f"{name}{inspect.Signature(plain)}"


def told():
    """Names with their signatures, as the newest entry that has them tells.

    In a section of what was removed, a name stands without a signature.
    """
    newest = {}
    for heading, text in re.findall(
        r"^### (\w+)\n(.*?)(?=^##|\Z)", CHANGELOG, re.M | re.S
    ):
        for name, arguments in re.findall(r"^- `(\w+)(\(.*?\))?`", text, re.M):
            if arguments or heading == "Removed":
                newest.setdefault(name, f"{name}{arguments}")
    return {text for name, text in newest.items() if text != name}


def test_names_and_defaults_are_those_of_the_changelog():
    assert {signature(name) for name in NAMES} == told()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (keras_smoothl1, NAMES),
        (keras_smoothl1.losses, ["SmoothL1Loss", "smooth_l1_loss"]),
        (keras_smoothl1.metrics, ["SmoothL1Error"]),
    ],
)
def test_a_name_can_be_imported_from_the_package_and_from_its_module(module, names):
    for name in names:
        assert getattr(module, name) is getattr(keras_smoothl1, name)


@pytest.fixture
def notes():
    return runpy.run_path(str(ROOT / ".github" / "release_notes.py"))["notes"]


def test_the_version_can_be_released(notes):
    assert "###" in notes(f"v{keras_smoothl1.__version__}")


def test_a_version_without_a_section_is_refused(notes, monkeypatch):
    monkeypatch.setattr(
        pathlib.Path, "read_text", lambda *_, **__: '__version__ = "9.9"'
    )
    with pytest.raises(SystemExit, match=re.escape("no section '## [9.9] - year")):
        notes("v9.9")


def test_the_citation_is_of_the_newest_release():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version, date = re.search(r"^## \[(\d.*)\] - (.*)$", CHANGELOG, re.M).groups()
    assert f"\nversion: {version}\n" in citation
    assert f'\ndate-released: "{date}"\n' in citation


@pytest.mark.parametrize("tag", ["v0.0.0", keras_smoothl1.__version__])
def test_another_tag_is_refused(notes, tag):
    with pytest.raises(SystemExit, match=re.escape(f"The tag is {tag}, but")):
        notes(tag)
