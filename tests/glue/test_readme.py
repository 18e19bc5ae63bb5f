"""The GLUE commands of the README, as written, with the real names on a loopback Hub."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser

from tests.hub.repos import add_tiny_bert, add_tiny_glue
from tests.hub.server import HubServer

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = """
import json, sys
from hf_cyclprune.cli import main
for argv in json.loads(sys.argv[1]):
    assert main(argv) == 0, argv
"""


def test_every_command_of_the_glue_section_runs(tmp_path):
    (block,) = re.findall(r"<!-- glue commands -->\n```\n(.*?)```", README, re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) > 3
    assert {command[0] for command in commands} == {"hf-cyclprune"}
    with HubServer() as hub:
        add_tiny_bert(hub)
        add_tiny_glue(hub, num_rows=24)
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-c", RUN, json.dumps([command[1:] for command in commands])]
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    sparsity = {
        folder: json.loads((tmp_path / folder / "all_results.json").read_text())["sparsity"]
        for folder in ("sst2", "mnli", "rte_dense")
    }
    assert sparsity == {"sst2": 13107 / 16384, "mnli": 0.5, "rte_dense": 0.0}
    assert (tmp_path / "sst2_predictions" / "predict_results_sst2.txt").is_file()


def test_accelerate_launches_it(flags, tmp_path):
    """What `accelerate launch` does with its arguments: it starts a process."""
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    run = ["-m", "hf_cyclprune.cli", "glue", *flags("sst2", "--sparsity", 0.5)]
    launch_command(launch_command_parser().parse_args([*options, *run]))
    assert (tmp_path / "out" / "all_results.json").is_file()


def test_the_example_with_the_trainer_does_the_same(tiny_folder, glue_folder, tmp_path):
    main = runpy.run_path(str(ROOT / "examples" / "glue_trainer.py"))["main"]
    folder = str(glue_folder / "sst2")
    options = {"max_steps": 12, "save_strategy": "no", "report_to": [], "num_cycles": 2}
    values = main(str(tiny_folder), str(tmp_path / "out"), folder, **options)
    assert 0 <= values["eval_accuracy"] <= 1
    report = json.loads((tmp_path / "out" / "sparsity_report.json").read_text())
    assert report["is_at_target"]
    assert report["target_sparsity"] == 0.8
