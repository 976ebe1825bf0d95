from __future__ import annotations

from kleash.checks.check import Check, verdict


def test_a_summary_has_the_finding_of_the_first_failed_check() -> None:
    checks = [
        Check(name="a", passed=True, finding="fine"),
        Check(name="b", passed=None, finding="who knows"),
        Check(name="c", passed=False, finding="bad", advice="mend it", figures={"x": 1}),
    ]
    found = verdict(checks)
    assert (found["passed"], found["advice"], found["figures"]) == (False, "mend it", {"x": 1})
    assert found["finding"] == "bad (1 ok, 1 failed, 1 unknown)"
    assert verdict(checks[:2])["passed"] is True
    assert [check["name"] for check in found["checks"]] == ["a", "b", "c"]
