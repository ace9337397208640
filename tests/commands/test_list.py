"""`overpaint list`: components one per line, or the commented YAML of one."""

import pytest

from command_line import CommandLine
from overpaint.grid.registry import file_of


@pytest.fixture
def listed(tmp_path):
    return lambda *names: CommandLine(tmp_path)("list", *names).stdout


def test_a_named_component_is_printed_with_its_comments(listed):
    assert listed("methods", "uce", "esd") == "".join(file_of("method", name).read_text() for name in ("uce", "esd"))


def test_names_of_every_length_stand_in_columns(listed):
    lines = listed("experiments").splitlines()
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}
    assert len(lines) > 20 and len(starts) == 1


def test_a_concept_is_shown_with_its_entries_in_the_catalogues(listed):
    said = listed("concepts", "Snoopy")
    assert said.startswith("# in the catalogue characters, hub33\nSnoopy:\n  kind: character\n")
    church = listed("concepts", "church")
    assert church.startswith(file_of("concepts", "church").read_text())
    assert "# in the catalogue testbed, testbed_words\nchurch:\n  kind: object\n  anchor: house\n" in church
    assert (
        "  synonyms: [chapel, cathedral]\n" in church
        and "  translations: {de: [eine kirche], es: [una iglesia]}\n" in church
    )


def test_a_concept_of_no_catalogue_is_refused(tmp_path):
    said = CommandLine(tmp_path)("list", "concepts", "Snopy", code=2).stderr
    assert "unknown concept 'Snopy'; did you mean 'Snoopy'?" in said
