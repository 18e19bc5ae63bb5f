import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from hf_cyclprune.glue.arguments import check_together
from hf_cyclprune.glue.tasks import TASKS
from hf_cyclprune.training.arguments import PruningArguments


@pytest.fixture
def check(tmp_path):
    def run(**options):
        options = {"do_train": True, "use_cpu": True, "report_to": [], **options}
        check_together(PruningArguments(str(tmp_path), **options), TASKS["sst2"])

    return run


@pytest.mark.parametrize("pruning", [{}, {"sparsity": 0.8}])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                {"num_train_epochs": value},
                f"num_train_epochs must be a number > 0; got {value}. Pas",
            )
            for value in (-1.0, 0.0, float("nan"))
        ),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be an integer >= 1"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size must be an integer >= 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be an integer >= 1"),
    ],
)
def test_a_run_without_a_step_is_refused_by_the_name_of_the_cause(check, pruning, options, message):
    with pytest.raises(ValueError, match="must be") as caught:
        check(**pruning, **options)
    assert message in str(caught.value)


def test_epochs_do_not_matter_where_steps_are_given_or_nothing_is_trained(check):
    check(num_train_epochs=0.0, max_steps=4)
    check(num_train_epochs=0.0, do_train=False, do_eval=True)
