"""What a benchmark has measured stays, whatever comes after; a bad path ends it beforehand."""

import pytest
from peers.report import Report


def test_parts_are_printed_and_written_as_they_come(tmp_path, capsys):
    out = tmp_path / "report.md"
    report = Report(str(out))
    report.add(["# Speed", ""])
    assert out.read_text() == "# Speed\n\n"
    report.add(["fast"])
    assert out.read_text() == capsys.readouterr().out == "# Speed\n\nfast\n"


def test_without_a_file_it_is_only_printed(capsys):
    Report("").add(["fast"])
    assert capsys.readouterr().out == "fast\n"


def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path):
    with pytest.raises(SystemExit, match=r"--out=.*nowhere/x.md: No such file.*; name a file"):
        Report(str(tmp_path / "nowhere" / "x.md"))
