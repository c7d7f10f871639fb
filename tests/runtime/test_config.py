"""Config files, which all programs read in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pepper_runtime.config import ConfigFileError, read_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "No such file or directory", id="missing"),
        pytest.param(b"\xff\xfe", "not UTF-8 text", id="not-utf-8"),
        pytest.param(b'{\n"a": s3cret', "not JSON (line 2)", id="not-json"),
        pytest.param(b'["s3cret"]', "expected a JSON object", id="list"),
        pytest.param(b"[" * 100_000, "not JSON", id="nested-too-deeply"),
    ],
)
def test_unusable_config_file_is_one_line_without_values(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigFileError) as caught:
        read_config(str(path))
    assert str(caught.value) == f"config file {path}: {reason}"


@pytest.mark.parametrize("mark", [pytest.param("", id="plain"), pytest.param("\ufeff", id="byte-order-mark")])
def test_config_file_is_utf_8(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(f'{mark}{{"name": "é"}}', encoding="utf-8")
    assert read_config(str(path)) == {"name": "é"}
