"""The public API and the releases agree with CHANGELOG.md."""

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
TAG = f"v{keras_smoothl1.__version__}"
NAMES = [name for name in keras_smoothl1.__all__ if name != "__version__"]


def signature(name):
    parameters = inspect.signature(getattr(keras_smoothl1, name)).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return f"{name}{inspect.Signature(plain)}"


def documented():
    """The signatures in the changelog: for each name, that of the newest entry.

    A section of removed names lists them without signatures.
    """
    newest = {}
    for heading, text in re.findall(
        r"^### (\w+)\n(.*?)(?=^##|\Z)", CHANGELOG, re.M | re.S
    ):
        unfolded = re.sub(r"\n +", " ", text)
        for name, arguments in re.findall(r"^- `(\w+)(\(.*?\))?`", unfolded, re.M):
            if arguments or heading == "Removed":
                newest.setdefault(name, f"{name}{arguments}")
    return {text for name, text in newest.items() if text != name}


def test_names_and_defaults_match_the_changelog():
    actual = {signature(name) for name in NAMES}
    assert actual == documented(), (
        "CHANGELOG.md lists other names or defaults. Under [Unreleased], below "
        "'### Added' or '### Changed', it needs lines that begin with "
        + " and ".join(f"- `{text}`" for text in sorted(actual - documented()))
        + "; below '### Removed', it needs the names that are gone."
    )


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


def changelog(unreleased="", version=keras_smoothl1.__version__):
    """A changelog with unreleased changes, and a section for the version."""
    return f"# Changelog\n\n## [Unreleased]\n{unreleased}\n{section(version)}"


def section(version):
    return f"## [{version}] - 2026-01-31\n\n### Added\n\n- All of {version}.\n"


def test_the_notes_of_a_release_are_its_section(notes):
    text = notes(TAG, changelog() + section("0.0.1"))
    assert text == f"### Added\n\n- All of {keras_smoothl1.__version__}."


def test_the_changelog_has_a_section_for_the_version(notes):
    without_unreleased = re.sub(
        r"(## \[Unreleased\]\n).*?(?=^## )", r"\1", CHANGELOG, flags=re.M | re.S
    )
    assert "###" in notes(TAG, without_unreleased)


@pytest.mark.parametrize(
    ("tag", "text", "reason"),
    [
        ("v0.0.0", changelog(), f"must be {TAG}, as"),
        (keras_smoothl1.__version__, changelog(), f"must be {TAG}, as"),
        (TAG, changelog("### Fixed\n- A hole."), "[Unreleased]:\n### Fixed\n- A hole."),
        (TAG, changelog(version="9.9"), f"no section '## [{TAG[1:]}] - year"),
    ],
)
def test_an_inconsistent_release_is_rejected(notes, tag, text, reason):
    with pytest.raises(SystemExit, match=re.escape(reason)):
        notes(tag, text)


def test_the_citation_matches_the_newest_release():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version, date = re.search(r"^## \[(\d.*)\] - (.*)$", CHANGELOG, re.M).groups()
    assert f"\nversion: {version}\n" in citation
    assert f'\ndate-released: "{date}"\n' in citation
