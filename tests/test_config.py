import json
import math
from pathlib import Path

import pytest

from hf_cyclprune.config import PruningConfig, config_from_dict, config_to_dict, field_names
from hf_cyclprune.config_file import CONFIG_NAME, load_config, save_config
from hf_cyclprune.methods import METHODS, Method, Plan
from hf_cyclprune.pruning.criteria import FirstCycle
from hf_cyclprune.pruning.criterion import CRITERIA
from hf_cyclprune.pruning.patterns import NM, SCOPES, Unstructured
from hf_cyclprune.pruning.ramps import RAMPS
from hf_cyclprune.pruning.schedules import LEVELS, RECOMPUTE, Schedule

FRACTIONS = ("reset_ratio", "ramp_ratio", "rise_ratio", "initial_sparsity")
FLAGS = ("lr_restarts", "reset_momentum", "eval_cycle_ends", "save_cycle_ends", "fix_loss_scaling")
OPTIONAL = set(Plan.__dataclass_fields__)

BAD = [
    *(
        ({"ema_decay": value}, ["ema_decay must be in [0, 1)", repr(value), "0.99"])
        for value in (1.0, -0.1, 99, math.nan, "0.9", True)
    ),
    ({"sparsity": None}, ["sparsity must be given", "None", "0.9"]),
    ({"sparsity": 1.0}, ["sparsity must be a fraction in [0, 1)", "got 1.0", "0.9"]),
    ({"sparsity": 1}, ["sparsity must be", "got 1.", "0.9"]),
    ({"sparsity": -0.1}, ["sparsity must be", "-0.1", "0.9"]),
    ({"sparsity": 90}, ["sparsity must be", "got 90", "Write 0.9 for 90 %"]),
    ({"sparsity": 97.5}, ["sparsity must be", "got 97.5", "Write 0.975 for 97.5 %"]),
    ({"sparsity": math.nan}, ["sparsity must be", "nan", "0.9"]),
    ({"sparsity": math.inf}, ["sparsity must be", "inf", "0.9"]),
    ({"sparsity": "0.9"}, ["sparsity must be", "'0.9'", "0.9."]),
    ({"sparsity": True}, ["sparsity must be", "True", "0.9"]),
    ({"sparsity": [0.9]}, ["sparsity must be", "[0.9]", "0.9."]),
    ({"pattern": "structured"}, ["pattern must be", "'structured'", "'2:4'"]),
    ({"pattern": None}, ["pattern must be", "None", "'2:4'"]),
    ({"pattern": "4:2"}, ["pattern n:m must have 0 < n < m", "'4:2'", "'2:4'"]),
    ({"pattern": "2:4"}, ["sparsity must be 0.5", "0.9", "Drop one"]),
    ({"pattern": "2:4", "sparsity": 0.4}, ["sparsity must be 0.5", "got 0.4", "Drop one"]),
    ({"pattern": "2:4", "sparsity": 0}, ["sparsity must be 0.5", "got 0. Drop one"]),
    ({"pattern": "2:4", "sparsity": 50}, ["sparsity must be a fraction", "Write 0.5 for 50 %"]),
    ({"pattern": "2:4", "sparsity": 0.5, "scope": "layer"}, ["scope must be left out", "'layer'"]),
    ({"scope": "local"}, ["scope must be one of", "'local'", "Omit it"]),
    ({"scope": ["layer"]}, ["scope must be one of", "layer", "Omit it"]),
    ({"criterion": "magnitud"}, ["criterion must be one of", "'magnitud'", "mean 'magnitude'"]),
    ({"criterion": "xyz"}, ["criterion must be one of", "'xyz'", "Choose"]),
    ({"criterion": ["magnitude"]}, ["criterion must be one of", "['magnitude']"]),
    ({"ramp": "Cubic"}, ["ramp must be one of", "'Cubic'", "mean 'cubic'"]),
    ({"ramp": 3}, ["ramp must be one of", "got 3", "Choose"]),
    ({"levels": "raising"}, ["levels must be one of", "'raising'", "mean 'rising'"]),
    ({"recompute": "edge"}, ["recompute must be one of", "'edge'", "mean 'edges'"]),
    ({"method": "held"}, ["method must be one of", "'held'", "mean 'hold'"]),
    ({"method": "ac/dc"}, ["method must be one of", "'ac/dc'", "mean 'ac_dc'"]),
    ({"initial_criterion": "rand"}, ["initial_criterion must be one of", "'rand'"]),
    ({"initial_sparsity": 0.95}, ["initial_sparsity must not exceed", "0.9; got 0.95"]),
    ({"num_cycles": 0}, ["num_cycles must be an integer >= 1", "got 0"]),
    ({"num_cycles": -1}, ["num_cycles must be", "-1"]),
    ({"num_cycles": 2.0}, ["num_cycles must be", "2.0"]),
    ({"num_cycles": True}, ["num_cycles must be", "True"]),
    ({"num_cycles": "4"}, ["num_cycles must be", "'4'"]),
    ({"interval_steps": 0}, ["interval_steps must be an integer >= 1", "got 0"]),
    ({"interval_steps": 0.5}, ["interval_steps must be", "0.5"]),
    ({"pruning_seed": "0"}, ["pruning_seed must be an integer", "'0'"]),
    ({"pruning_seed": None}, ["pruning_seed must be an integer", "None"]),
    ({"targets": "query"}, ["targets must be a list", "'query'", "targets=['query'"]),
    ({"targets": 5}, ["targets must be a list", "5", "targets=['query'"]),
    ({"targets": [5]}, ["targets must be a list", "[5]", "targets=['query'"]),
    ({"targets": ["("]}, ["targets must hold regular expressions", "'('", "backslash"]),
    ({"ignore": "query"}, ["ignore must be a list", "'query'", "ignore=['query'"]),
    ({"ignore": ["a", "*"]}, ["ignore must hold regular expressions", "'*'", "backslash"]),
    *(
        ({name: value}, [f"{name} must be in [0, 1]", repr(value), "0.5"])
        for name in FRACTIONS
        for value in (-0.1, 1.1, 50, math.nan, "0.5", True)
    ),
    *(
        ({name: value}, [f"{name} must be True or False", repr(value), "Pass"])
        for name in FLAGS
        for value in ("no", 0, None)
        if name not in OPTIONAL or value is not None
    ),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=str)
def test_a_bad_option_is_refused_with_its_name_its_value_and_a_remedy(options, words):
    with pytest.raises(ValueError, match="must") as error:
        PruningConfig(**{"sparsity": 0.9, **options})
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("name", field_names())
def test_every_option_that_is_changed_later_is_validated_again(name):
    config = PruningConfig(sparsity=0.9)
    setattr(config, name, object())
    with pytest.raises(ValueError, match=f"^{name} must"):
        config.validate()


GOOD = [
    {"sparsity": 0.0},
    {"sparsity": 0},
    {"sparsity": 0.999},
    {"sparsity": 0.9, "num_cycles": 1},
    {"sparsity": 0.9, "reset_ratio": 0, "ramp_ratio": 1, "rise_ratio": 0.0},
    {"sparsity": 0.9, "interval_steps": 1, "pruning_seed": -3},
    {"sparsity": 0.9, "targets": [r"layer\.0", "query"], "ignore": []},
    {"pattern": "2:4"},
    {"pattern": "1:3", "sparsity": 0.667},
    *({"sparsity": 0.9, "scope": scope} for scope in SCOPES),
    *({"sparsity": 0.9, "ramp": name} for name in RAMPS),
    *({"sparsity": 0.9, "criterion": name} for name in CRITERIA),
    *({"sparsity": 0.9, "levels": name} for name in LEVELS),
    *(
        {"method": "cyclical", "sparsity": 0.9, "recompute": name, "reset_ratio": 1.0}
        for name in RECOMPUTE[:-1]
    ),
    *({"sparsity": 0.9, "method": name} for name in METHODS if name != "hold"),
    {"method": "hold", "targets": ["query"], "ema_decay": 0.9},
    {"sparsity": 0.9, "ema_decay": 0},
]


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_a_config_survives_its_json_file(options, tmp_path):
    config = PruningConfig(**options)
    path = save_config(config, tmp_path)
    assert path == tmp_path / CONFIG_NAME
    assert load_config(tmp_path) == config
    assert config_from_dict(config_to_dict(config)) == config
    assert list(json.loads(path.read_text())) == field_names()


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_a_config_builds_what_it_says(options):
    config = PruningConfig(**options)
    schedule = config.build_schedule(1000)
    if config.target_sparsity is not None:
        assert schedule.sparsity == config.target_sparsity == schedule.sparsity_at(1000)
    assert all(
        getattr(schedule, name) == getattr(config.plan, name)
        for name in set(Schedule.__dataclass_fields__) & OPTIONAL
    )
    is_changed_later = config.plan.initial_criterion is not None
    made = FirstCycle if is_changed_later else CRITERIA[config.plan.criterion]
    assert type(config.build_criterion()) is made
    assert config.build_criterion().seed == config.pruning_seed
    is_nm = config.pattern != "unstructured"
    assert isinstance(config.build_pattern(), NM if is_nm else Unstructured)


def test_what_is_given_goes_before_the_methods_settings_and_these_before_the_defaults():
    plan = PruningConfig(method="gradual_restarts", sparsity=0.9, ramp_ratio=0.6).plan
    assert plan == Plan(levels="rising", ramp_ratio=0.6, reset_ratio=1.0)


def test_the_default_is_one_that_cycles_and_the_papers_method_is_the_papers():
    plan = PruningConfig(sparsity=0.9).plan
    schedule = PruningConfig(sparsity=0.9).build_schedule(1000)
    assert any(schedule.sparsity_at(e + 1) < schedule.sparsity_at(e) for e in schedule.edges[1:-1])
    assert (plan.criterion, plan.scope, plan.pruned_weights) == ("fisher", "global", "stored")
    assert not PruningConfig(sparsity=0.9).restarts_lr
    assert PruningConfig("cyclical", sparsity=0.9).plan == Plan()


def test_a_value_that_is_false_or_zero_is_given_too():
    plan = PruningConfig("cyclical", sparsity=0.9, lr_restarts=False, reset_ratio=0.0).plan
    assert plan == Plan(lr_restarts=False, reset_ratio=0.0)


@pytest.mark.parametrize("name", [*Plan.__dataclass_fields__, "sparsity", "scope"])
def test_with_zeros_that_stay_nothing_else_is_chosen(name):
    if name == "recompute":
        return
    values = {"lr_restarts": True, "num_cycles": 2, "scope": "layer"}
    with pytest.raises(ValueError, match=f"^{name} must be left out with method 'hold'"):
        PruningConfig(method="hold", **{name: values.get(name, 0.5)})


def test_the_option_that_keeps_the_zeros_is_named_where_it_was_given():
    with pytest.raises(ValueError, match=r"^sparsity must be left out with recompute='never', "):
        PruningConfig(sparsity=0.9, recompute="never")


def test_the_sparsity_of_nm_is_exact_whatever_was_rounded():
    assert PruningConfig(pattern="1:3", sparsity=0.667).target_sparsity == 2 / 3


def test_more_cycles_than_steps_are_refused_when_the_steps_are_known():
    with pytest.raises(ValueError, match=r"num_cycles must not exceed .*\(3\); got 4"):
        PruningConfig(sparsity=0.9, num_cycles=4).build_schedule(3)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 5])
def test_a_run_of_a_few_steps_has_as_many_cycles_as_it_can(total_steps):
    schedule = PruningConfig(sparsity=0.9).build_schedule(total_steps)
    assert schedule.num_cycles == min(total_steps, 2)
    assert schedule.sparsity_at(total_steps) == 0.9


def test_every_option_explains_itself():
    for name, field in PruningConfig.__dataclass_fields__.items():
        assert field.metadata["help"].endswith("."), name


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"option must be one of .*'sparcity'.*mean 'sparsity'"):
        config_from_dict({"sparcity": 0.9})


@pytest.mark.parametrize("text", ["[]", "null", "0.9", "{", "", '{"sparsity": 0.9'])
def test_a_file_that_is_no_json_object_is_refused_by_name(tmp_path: Path, text):
    (tmp_path / CONFIG_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{CONFIG_NAME} in .* cannot be read.*save_config"):
        load_config(tmp_path)


def test_a_bad_value_in_a_file_is_refused_as_on_construction(tmp_path):
    (tmp_path / CONFIG_NAME).write_text('{"sparsity": 90}')
    with pytest.raises(ValueError, match=r"Write 0\.9 for 90 %"):
        load_config(tmp_path)


def test_a_folder_without_a_config_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path)


def test_a_file_that_cannot_be_read_here_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(CRITERIA, "mine", CRITERIA["magnitude"])
    config = PruningConfig(sparsity=0.8, criterion="mine", ignore=("layer.0", "layer.1"))
    save_config(config, tmp_path)
    assert load_config(tmp_path) == config
    monkeypatch.delitem(CRITERIA, "mine")
    with pytest.raises(ValueError, match=r"pruning_config\.json' .* got 'mine'.* import the code"):
        load_config(tmp_path)


def test_a_setting_of_a_method_that_is_no_option_is_named():
    with pytest.raises(ValueError, match=r"setting must be .* got 'num_cycle'.* mean 'num_cycles'"):
        Method("mine", "s_t", "Mine.", {"num_cycle": 1})
