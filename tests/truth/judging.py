"""What a test of a row says about its score."""

from __future__ import annotations

import pytest

from truth.scene import Scene, Score, report

METHODS = pytest.mark.parametrize("method", ["sock_diag", "proc"])


def all_right(score: Score, flows: int) -> bool:
    return (score.right, score.null, score.wrong, score.missing) == (flows, 0, 0, 0)


def judge(row: str, case: str, method: str, it: Scene, flows: int, *, protocol: str = "tcp") -> None:
    """Every one of ``flows`` right, by the method that was asked for."""
    score = it.score(flows, protocol=protocol)
    report(row, case, method, score)
    assert all_right(score, flows), f"row {row}, {case}: {score}; {it.records[:8]}; {it.ledger.read()[:8]}"
    assert {record["attribution"]["method"] for record in it.records} == {method}


def nat_of(it: Scene) -> list[list[tuple[str, str]]]:
    return [[(step["from"], step["to"]) for step in record["attribution"]["nat"]] for record in it.records]
