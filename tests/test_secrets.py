import copy
import pickle
from dataclasses import replace

import pytest
from transformers import TrainingArguments

from hf_cyclprune.secrets import Secret, redact

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_in_no_pickle(protocol):
    args = TrainingArguments("out", hub_token=Secret(TOKEN), use_cpu=True)
    data = pickle.dumps(args, protocol)
    assert TOKEN.encode() not in data
    assert pickle.loads(data).hub_token is None
    for secret in (copy.copy(args), copy.deepcopy(args), replace(args)):
        assert f"Bearer {secret.hub_token}" == f"Bearer {TOKEN}"
        assert TOKEN.encode() not in pickle.dumps(secret, protocol)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", TOKEN],
        ["--hub-token", "plain", "--x"],
        ["--hub_token=plain"],
        ["--hub_tok", TOKEN],
        ["--hub_tok=" + TOKEN],
        ["--url", f"https://user:{TOKEN}@hub"],
        ["--wandb_api_key=plain"],
        ["--config", '{"hub_token": "plain"}'],
    ],
)
def test_a_command_line_shows_no_token(arguments):
    shown = " ".join(redact(arguments, "plain"))
    assert TOKEN not in shown
    assert "plain" not in shown
    assert "<token>" in shown


def test_a_command_line_shows_all_else():
    arguments = ["glue", "--output_dir", "hf_runs/a", "--tokenizer_name", "t", "--sparsity=0.8"]
    assert redact(arguments) == arguments
