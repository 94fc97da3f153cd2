"""DemoFusion: parity with the tensors of the official implementation."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibench.errors import AdapterError
from hibench.golden import check_case
from methods.demofusion import golden

GOLDEN = Path(__file__).parent / "golden" / "demofusion"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.name != "tiny_sdxl")


@pytest.mark.parametrize("name", CASES)
def test_parity_with_official_tensors(name: str) -> None:
    lines = list(check_case(golden.golden, GOLDEN / name))
    assert [str(line) for line in lines if not line.ok] == []
    assert len(lines) >= 3


def test_golden_refuses_what_is_no_case(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "else"}')
    with pytest.raises(AdapterError, match="not a DemoFusion golden case"):
        list(golden.golden(tmp_path))
