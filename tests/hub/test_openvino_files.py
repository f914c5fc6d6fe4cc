"""What an OpenVINO file in a repository may not hold, by files written by hand."""

import pytest

from oct_hf.hub.files import file_faults

CONSTANT = '<layer id="0" type="Const" version="{}"><data offset="{}" size="8"/></layer>'


def faults(folder, text: str) -> list[str]:
    (folder / "gray.xml").write_text(text)
    (folder / "gray.bin").write_bytes(bytes(16))
    return file_faults(folder, ["gray.xml", "gray.bin"])


def net(version: str = "opset1", offset: str = "8") -> str:
    return f'<?xml version="1.0"?><net><layers>{CONSTANT.format(version, offset)}</layers></net>'


def test_a_plain_one_is_fine(tmp_path):
    assert faults(tmp_path, net()) == []


@pytest.mark.parametrize(
    "text, why",
    [
        (net("extension"), "uses operators of extension"),
        (net(offset="9"), "its constants don't lie in the .bin file beside it"),
        (net(offset="here"), "is no OpenVINO file (its constants say no place)"),
        ("<html/>", "is no OpenVINO file (it holds <html>)"),
        ("<net>", "is no xml text (no element found: line 1, column 5)"),
        (
            '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/hostname">]><net>&a;</net>',
            "declares a document type or entities",
        ),
    ],
)
def test_what_reaches_elsewhere_or_runs_strange_code_is_named(tmp_path, text, why):
    (found,) = faults(tmp_path, text)
    assert found.startswith(f"gray.xml: {why}")
