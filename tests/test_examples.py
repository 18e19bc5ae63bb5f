import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_loop_ends_at_the_exact_sparsity():
    report = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert report.is_at_target
    assert report.num_zeros == round(0.9 * report.num_weights)


def test_the_loop_with_accelerate_ends_at_the_exact_sparsity():
    pruner = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["main"]()
    zeros = {name: int((weight == 0).sum()) for name, weight in pruner.targets.items()}
    assert pruner.is_at_target
    assert sum(zeros.values()) == sum(pruner.num_pruned)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)


def test_the_callback_makes_a_stock_trainer_end_at_2_of_4():
    report = runpy.run_path(str(EXAMPLES / "stock_trainer.py"))["main"](max_steps=30)
    assert report.patterns == ("2:4", "4:8")
    assert report.num_zeros * 2 == report.num_weights


def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = "\n".join(sources).replace("NUM_STEPS = 120", "NUM_STEPS = 4")
    exec(compile(code, "quickstart.ipynb", "exec"), {})
    printed = capsys.readouterr().out
    assert "the same weights: True" in printed
    assert "sparsity 80.00" in printed


@pytest.fixture
def script(monkeypatch):
    """Runs a script's main with these arguments, in this process."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_weights_of_linear_models_are_counted_and_drawn(script, tmp_path, capsys):
    out, picture = tmp_path / "runs.jsonl", tmp_path / "picture.png"
    sizes = ("--num_runs", 200, "--ridges", 100, "--table_steps", 20, "--num_steps", 20)
    sizes = (*sizes, "--num_problems", 3, "--supports", 5, "--measurements", 80)
    script("linear_recovery", out, *sizes, "--picture", picture)
    assert "| 10 | adversarial | 0.04 |" in capsys.readouterr().out
    assert picture.is_file()
    runs = read_lines(out)
    right = {(r["n"], r["alpha"], r["method"]): r["result"]["right"] for r in runs if "n" in r}
    assert right[10, "random", "pgd"] > right[10, "random", "one_shot"] + 0.1
    assert right[2, "random", "one_shot"] == pytest.approx(0.2, abs=0.1)
    easy = {r["arm"]: r["result"]["found"] for r in runs if r.get("m") == 80}
    assert sum(easy["gradual"]) > sum(easy["one_shot"])

    script("linear_recovery", out, *sizes)
    assert read_lines(out) == runs, "a finished cell was measured again"


def test_the_ablation_compares_arms_from_the_same_dense_network(script, tmp_path, capsys):
    out, picture = tmp_path / "runs.jsonl", tmp_path / "picture.png"
    arms = ("gradual", "frozen_restarts", "cubic (cyclical)", "rising, dips to 0.8")
    sizes = ("--dense_epochs", 1, "--cycle_epochs", 1, "--num_cycles", 2, "--sparsities", 0.9)
    script("ablation", out, *sizes, "--seeds", 0, "--arms", *arms, "--picture", picture)
    assert "Sparsity 90 %" in capsys.readouterr().out
    assert picture.is_file()
    results = {run["arm"]: run["result"] for run in read_lines(out)}
    assert set(results) == set(arms)
    assert len({result["dense"] for result in results.values()}) == 1
    for result in results.values():
        assert result["sparsity"][-1] == pytest.approx(0.9, abs=1e-4)
        assert len(result["accuracy"]) == 2
    assert results["frozen_restarts"]["distance_to_first"] == [0.0, 0.0]
    assert results["cubic (cyclical)"]["accuracy"][0] == results["frozen_restarts"]["accuracy"][0]


@pytest.fixture
def tiny_task(tmp_path, monkeypatch):
    """Writes a tiny BERT and a tiny SST-2, and lets the test import from the examples."""
    pytest.importorskip("datasets", reason="the extra glue is not installed")
    from tests.hub.repos import save_tiny_bert, write_tiny_glue

    save_tiny_bert(tmp_path / "bert")
    write_tiny_glue(tmp_path / "glue", num_rows=24)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return {"model": tmp_path / "bert", "folder": tmp_path / "glue" / "sst2"}


def test_methods_are_compared_at_each_sparsity_and_number_of_steps(
    tiny_task, tmp_path, monkeypatch, capsys
):
    import compare_methods
    from experiment import append

    def in_this_process(run, tokenized, options):
        append(options.out, run, compare_methods.train(run, tokenized, options.save_models))

    monkeypatch.setattr(compare_methods, "run_in_process", in_this_process)
    out, picture = tmp_path / "runs.jsonl", tmp_path / "picture.png"
    models = tmp_path / "models"

    def compare(*arguments):
        sizes = ("--model", tiny_task["model"], "--num_layers", 1, "--num_held_out", 8)
        command = ("sst2", tiny_task["folder"], out, *sizes, "--workers", 1, *arguments)
        monkeypatch.setattr("sys.argv", ["compare_methods.py", *map(str, command)])
        compare_methods.main()
        return read_lines(out)

    grid = ("--sparsity", 0.5, 0.75, "--max_steps", 2, 3, "--picture", picture)
    grid = (*grid, "--arm", "fisher", "method=fisher", "--arm", "ours", "num_cycles=2")
    runs = compare(*grid)
    assert len({(run["arm"], run["sparsity"], run["max_steps"]) for run in runs}) == len(runs) == 8
    for run in runs:
        assert run["result"]["sparsity"] == pytest.approx(run["sparsity"], abs=1e-3)
    printed = capsys.readouterr().out
    for sparsity in (50, 75):
        for steps in (2, 3):
            assert f"{sparsity} %, {steps} steps\n" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")

    assert compare(*grid) == runs, "a finished run was made again"

    small = ("--sparsity", 0.5, "--max_steps", 2, "--arm")
    both = compare(*small, "2:4", "pattern=2:4", "--arm", "dense", "--save_models", models)[-2:]
    assert [run["result"].get("sparsity") for run in both] == [0.5, None]
    teacher = models / "dense-0.5-2-0.0003-0"
    taught = compare(*small, "taught", "method=fisher", f"teacher={teacher}")[-1]
    (alone,) = (r for r in runs if (r["arm"], r["sparsity"], r["max_steps"]) == ("fisher", 0.5, 2))
    assert taught["result"]["sparsity"] == alone["result"]["sparsity"]
    assert taught["result"]["held_out_loss"] != alone["result"]["held_out_loss"]


def test_differences_are_of_one_seed_each_at_the_best_learning_rate(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from method_tables import show

    scores = {  # arm, learning rate -> seeds 0 and 1
        ("gradual", 1e-4): (0.1, 0.2),
        ("gradual", 2e-4): (0.5, 0.9),
        ("rising", 1e-4): (0.7, 0.9),
        ("rising", 2e-4): (0.1, 0.95),
    }
    runs = [
        {"arm": arm, "learning_rate": rate, "seed": seed}
        | {"result": {"held_out_loss": 9.0, "held_out_f1": score, "validation_f1": score - 0.1}}
        for (arm, rate), both in scores.items()
        for seed, score in enumerate(both)
    ]
    show(runs)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows[2][:5] == ["gradual", "0.0002", "2", "0.7000 ± 0.2000", ""]
    assert rows[3][1:5] == ["0.0001", "2", "0.8000 ± 0.1000", "0.1000 ± 0.1000"]
    assert rows[3][5] == "0.7000 ± 0.1000"


def test_masks_are_transplanted_and_weights_returned(
    tiny_task, script, tmp_path, monkeypatch, capsys
):
    import compare_methods
    import mask_probes
    from experiment import append

    def in_this_process(run, tokenized, options):
        append(options.out, run, mask_probes.train(run, tokenized, options.out))

    monkeypatch.setattr(compare_methods, "run_in_process", in_this_process)
    out = tmp_path / "runs.jsonl"
    sizes = ("--max_steps", 2, "--num_held_out", 8, "--num_batches", 1, "--regrowth_steps", 1)
    model = ("--model", tiny_task["model"], "--num_layers", 1, "--workers", 1)
    masks = ("--masks", "magnitude", "end of fisher", "fisher's densities", "random")
    script("mask_probes", "sst2", tiny_task["folder"], out, *model, *sizes, *masks)
    runs = {(run["probe"], run["arm"]): run["result"] for run in read_lines(out)}
    assert len(runs) == 5
    transplants = {arm: result for (probe, arm), result in runs.items() if probe == "transplant"}
    for result in transplants.values():
        assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)
    distances = {arm: result["distance_to_magnitude"] for arm, result in transplants.items()}
    assert distances["magnitude"] == 0 < distances["end of fisher"] < distances["random"]
    regrowth = runs["source", "fisher"]["regrowth"]
    assert regrowth["losses"]["random"]["zero"][0] == pytest.approx(regrowth["before"])
    assert regrowth["losses"]["-gW"]["stored"][0] != regrowth["before"]
    assert "Mask transplant" in capsys.readouterr().out


def test_latencies_are_measured_shown_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = runpy.run_path(str(EXAMPLES / "inference_times.py"))
    shape = {"model": "tiny", "batch_size": 1, "seq_length": 8, "threads": 1, "keep_all": True}
    lines = []
    for part in ("table", "length", "batch", "kept"):
        run = {**shape, "part": part, "levels": ["0.9"], "runtimes": ["torch CSR"]}
        lines.append({**run, "result": names["measure"](run)})
    for result in (line["result"] for line in lines):
        assert set(result["times"]) == {"dense", "torch CSR 0.9", "sparse 0.9"}
        assert result["sparse_layers"] == {"0.9": 12}
        assert all(5 <= len(times) <= 25 and min(times) > 0 for times in result["times"].values())
    names["show"](lines)
    assert "table: tiny, threads: 1, medians in ms" in capsys.readouterr().out
    names["draw"](lines, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
