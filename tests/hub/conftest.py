import json

import pytest

from hf_cyclprune import PruningConfig
from hf_cyclprune.config_file import save_config


@pytest.fixture
def folder(tiny_bert, tmp_path):
    """A pruned model as an older version left it: with its config and the Trainer's state."""
    place = tmp_path / "model"
    model = tiny_bert()
    for name, weight in model.named_parameters():
        if ".layer." in name and weight.ndim == 2:
            weight.data.view(-1)[::2] = 0
    model.save_pretrained(place)
    save_config(PruningConfig(sparsity=0.5, num_cycles=1), place)
    state = {"global_step": 4, "max_steps": 8, "log_history": [{"step": 4, "loss": 1.0}]}
    (place / "trainer_state.json").write_text(json.dumps(state))
    return place
