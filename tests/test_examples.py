import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_loop_ends_at_the_exact_sparsity():
    report = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert report.is_at_target
    assert {round(weight.sparsity, 2) for weight in report.weights} == {0.9}
