import json

import numpy as np
import pytest

from hf_cyclprune import PruningArguments, PruningConfig, Schedule, save_config
from hf_cyclprune.checks import (
    check_count,
    check_decay,
    check_fraction,
    check_integer,
    check_positive,
    check_sparsity,
    python_number,
)

NUMBERS = [np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5)]
INTEGERS = [np.int8(2), np.int32(2), np.int64(2), np.uint8(2)]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: type(value).__name__)
def test_the_numbers_of_numpy_are_numbers(value):
    check_sparsity(value)
    for check in (check_fraction, check_decay, check_positive):
        check("argument", value)
    assert (type(python_number(value)), python_number(value)) == (float, 0.5)
    for check in (check_count, check_integer):
        with pytest.raises(ValueError, match="argument must be an integer"):
            check("argument", value)


@pytest.mark.parametrize("value", INTEGERS, ids=lambda value: type(value).__name__)
def test_the_integers_of_numpy_are_integers(value):
    for check in (check_count, check_integer, check_positive):
        check("argument", value)
    assert (type(python_number(value)), python_number(value)) == (int, 2)


@pytest.mark.parametrize("value", [True, np.bool_(True), "1", None, 1j, np.array([1]), np.nan])
def test_what_is_no_number_stays_and_is_refused(value):
    assert python_number(value) is value
    for check in (check_fraction, check_decay, check_positive, check_count, check_integer):
        with pytest.raises(ValueError, match="argument must be"):
            check("argument", value)


OPTIONS = {"sparsity": np.float32(0.5), "num_cycles": np.int64(2), "ramp_ratio": np.float16(1)}


def test_a_config_stores_the_numbers_of_python(tmp_path):
    config = PruningConfig(**OPTIONS)
    config.interval_steps = np.int64(4)  # as a search does
    config.validate()
    values = json.loads(save_config(config, tmp_path).read_text())
    names = ("sparsity", "num_cycles", "ramp_ratio", "interval_steps")
    assert [values[name] for name in names] == [0.5, 2, 1.0, 4]


def test_arguments_store_the_numbers_of_python(tmp_path):
    more = {"teacher_hardness": np.float32(0.25), "learning_rate": np.float32(0.5)}
    args = PruningArguments(str(tmp_path), use_cpu=True, report_to=[], **OPTIONS, **more)
    args.interval_steps = np.int64(4)
    assert args.pruning_config().interval_steps == 4
    values = json.loads(args.to_json_string())
    names = ("sparsity", "num_cycles", "interval_steps", *more)
    assert [values[name] for name in names] == [0.5, 2, 4, 0.25, 0.5]


def test_a_schedule_computes_with_the_numbers_of_python():
    schedule = Schedule(np.float32(0.5), np.int32(20), np.int8(2), interval_steps=np.int64(3))
    assert schedule == Schedule(0.5, 20, 2, interval_steps=3)
    assert type(schedule.sparsity_at(20)) is float
    assert {type(edge) for edge in schedule.edges} == {int}
