"""A teacher's loss: known answers, the right scale in every batch, and what is never touched."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, mse_loss
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_cyclprune import PruningArguments, PruningConfig, PruningTrainer
from hf_cyclprune.training.distillation import teacher_loss

CONFIG = PruningConfig(sparsity=0.5, num_cycles=1)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self):
        self.values = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if not self.values:
            self.values = {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.fixture
def gradients(train):
    """Return the gradients of one step of 32 rows, in as many micro-batches as asked for."""

    def run(model, teacher=None, num_micro_batches=1, cls=PruningTrainer, **options):
        args = {
            "max_steps": 1,
            "per_device_train_batch_size": 32 // num_micro_batches,
            "gradient_accumulation_steps": num_micro_batches,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            **options.pop("args", {}),
        }
        watch = Gradients()
        if cls is PruningTrainer:
            options["teacher"] = teacher
        args_cls = PruningArguments if cls is PruningTrainer else TrainingArguments
        train(
            cls,
            args=args,
            args_cls=args_cls,
            model=copy.deepcopy(model),
            callbacks=[watch],
            **options,
        )
        return watch.values

    return run


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-6, msg=name)


def is_same(one, other):
    return all(torch.equal(gradient, other[name]) for name, gradient in one.items())


def full_batch(examples):
    return {
        "input_ids": torch.stack([e["input_ids"] for e in examples]),
        "labels": torch.tensor([e["labels"] for e in examples]),
    }


def test_the_loss_of_classes_is_the_divergence_times_the_squared_temperature():
    student, teacher = torch.randn(2, 6, 3).unbind()
    for temperature in (1.0, 2.5):
        ours = (student / temperature).log_softmax(-1)
        theirs = (teacher / temperature).softmax(-1)
        wanted = temperature**2 * kl_div(ours, theirs, reduction="batchmean")
        found = teacher_loss(student, teacher, torch.zeros(6, dtype=torch.long), temperature)
        torch.testing.assert_close(found, wanted)
    assert teacher_loss(student, student, None, 2.0) == 0


def test_one_row_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(teacher_loss(student, teacher, None, 1.0)) == pytest.approx(by_hand)
    square = math.log(3.0) ** 2 / 2
    assert float(teacher_loss(student, teacher, None, None)) == pytest.approx(square)


def test_the_loss_of_a_regression_is_the_mean_squared_error():
    student, teacher = torch.randn(2, 6, 1).unbind()
    found = teacher_loss(student, teacher, torch.full((6,), -100.0), None)
    torch.testing.assert_close(found, mse_loss(student, teacher))


def test_tokens_without_a_label_do_not_count():
    student, teacher = torch.randn(2, 4, 5, 3).unbind()
    labels = torch.randint(0, 3, (4, 5)).masked_fill(torch.rand(4, 5) < 0.5, -100)
    is_counted = labels != -100
    wanted = teacher_loss(student[is_counted], teacher[is_counted], None, 2.0)
    torch.testing.assert_close(teacher_loss(student, teacher, labels, 2.0), wanted)
    assert teacher_loss(student, teacher, torch.full((4, 5), -100), 2.0) == 0


@pytest.mark.parametrize("hardness", [0.3, 1.0])
def test_the_gradient_is_that_of_the_two_losses(gradients, tiny_bert, examples, hardness):
    """The 32 rows of the first step are among the examples: here they are all there are."""
    rows, teacher, model = examples[:32], tiny_bert(1), tiny_bert(**NO_DROPOUT)
    options = {"teacher_hardness": hardness, "teacher_temperature": 3.0}
    found = gradients(model, teacher, args=options, train_dataset=rows)
    batch = full_batch(rows)
    logits = model(batch["input_ids"]).logits
    soft = kl_div(
        (logits / 3).log_softmax(-1),
        (teacher.eval()(batch["input_ids"]).logits / 3).softmax(-1),
        reduction="batchmean",
    )
    hard = cross_entropy(logits, batch["labels"])
    ((1 - hardness) * hard + hardness * 9 * soft).backward()
    assert_close(found, {n: p.grad for n, p in model.named_parameters()})


def test_hardness_0_is_bit_equal_to_no_teacher(train, tiny_bert):
    args = {"max_steps": 6, "teacher_hardness": 0.0}
    options = {"args": args, "args_cls": PruningArguments, "pruning_config": CONFIG}
    one, other = (train(PruningTrainer, teacher=t, **options) for t in (None, tiny_bert(1)))
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name


def test_hardness_1_ignores_the_labels(gradients, tiny_bert, examples):
    flipped = [{**e, "labels": 1 - e["labels"]} for e in examples]
    teacher, model = tiny_bert(1), tiny_bert(**NO_DROPOUT)
    for hardness, is_ignored in ((1.0, True), (0.9, False)):
        one, other = (
            gradients(model, teacher, args={"teacher_hardness": hardness}, train_dataset=data)
            for data in (examples, flipped)
        )
        assert is_same(one, other) is is_ignored


class Counts(BertForTokenClassification):
    """Its loss is a sum over the tokens, divided by those of the whole batch."""

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **kwargs):
        outputs = super().forward(input_ids)
        loss = cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
        num_items = num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum()
        return {"loss": loss / num_items, "logits": outputs.logits}


def by_hand(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"]
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / (
        num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum()
    )


@pytest.fixture
def tokens(examples):
    """Rows with one to five labels each, so that no two micro-batches have as many."""
    rows = []
    for i, example in enumerate(examples):
        labels = (example["input_ids"] > 20).long()
        labels[i % 5 + 1 :] = -100
        rows.append({"input_ids": example["input_ids"], "labels": labels})
    return rows


KINDS = {
    "as it is": {},
    "pruned": {"pruning_config": CONFIG},
    "label smoothing": {"args": {"label_smoothing_factor": 0.1}},
    "pruned, label smoothing": {
        "args": {"label_smoothing_factor": 0.1},
        "pruning_config": CONFIG,
    },
    "compute_loss_func": {"compute_loss_func": by_hand},
    "pruned, compute_loss_func": {"compute_loss_func": by_hand, "pruning_config": CONFIG},
}


@pytest.mark.parametrize("hardness", [0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_does_not_change_the_gradient(gradients, tiny_bert, kind, hardness):
    model, teacher = tiny_bert(**NO_DROPOUT), tiny_bert(1)
    options = {**KINDS[kind]}
    args = {"teacher_hardness": hardness, **options.pop("args", {})}
    once, four = (gradients(model, teacher, n, args=args, **options) for n in (1, 4))
    assert_close(once, four)
    assert not is_same(once, gradients(model, None, args=args, **options))


@pytest.mark.parametrize("hardness", [0.5, 1.0])
@pytest.mark.parametrize("options", [{}, {"compute_loss_func": by_hand}], ids=["model", "function"])
def test_accumulation_counts_the_tokens_of_the_whole_batch(
    gradients, tiny_bert, tokens, options, hardness
):
    config = tiny_bert(**NO_DROPOUT).config
    torch.manual_seed(0)
    cls = Counts if not options else BertForTokenClassification
    model, teacher = cls(config), BertForTokenClassification(config)
    args = {"teacher_hardness": hardness}
    options = {"train_dataset": tokens, "eval_dataset": tokens, **options}
    once, four = (gradients(model, teacher, n, args=args, **options) for n in (1, 4))
    assert_close(once, four)


def test_label_smoothing_and_a_function_keep_their_loss(gradients, tiny_bert):
    """Of hardness h, the gradient is linear in it: between that of labels and that of teacher."""
    model, teacher = tiny_bert(**NO_DROPOUT), tiny_bert(1)
    for options in KINDS.values():
        options = {**options}
        more = options.pop("args", {})
        labels, half, soft = (
            gradients(model, teacher, args={"teacher_hardness": h, **more}, **options)
            for h in (0.0, 0.5, 1.0)
        )
        assert_close(half, {name: (labels[name] + soft[name]) / 2 for name in labels})


def test_rows_without_labels_are_learned_from_the_teacher_alone(gradients, tiny_bert, examples):
    model, teacher = tiny_bert(**NO_DROPOUT), tiny_bert(seed=1)
    args, bare = {"teacher_hardness": 1.0}, [{"input_ids": e["input_ids"]} for e in examples]
    found = gradients(model, teacher, 4, args=args, train_dataset=bare)
    assert_close(gradients(model, teacher, args=args), found)
    with pytest.raises(ValueError, match="did not return a loss"):
        gradients(model, teacher, args={"teacher_hardness": 0.9}, train_dataset=bare)


def test_the_teacher_is_not_changed_and_has_no_dropout(train, tiny_bert, examples):
    teacher = tiny_bert(1, hidden_dropout_prob=0.5).train()
    before, seen = copy.deepcopy(teacher.state_dict()), []
    teacher.register_forward_hook(lambda module, _, out: seen.append((module.training, out.logits)))
    trainer = train(PruningTrainer, args={"max_steps": 3}, teacher=teacher, pruning_config=CONFIG)
    assert len(seen) == 3
    assert not any(is_training or logits.requires_grad for is_training, logits in seen)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert trainer.model.training
    owned = {id(p) for p in trainer.model.parameters()}
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not (owned | optimized) & {id(p) for p in teacher.parameters()}


def test_the_teacher_runs_under_the_autocast_of_the_student(train, tiny_bert):
    teacher, seen = tiny_bert(1), []
    teacher.classifier.register_forward_hook(lambda module, _, out: seen.append(out.dtype))
    train(PruningTrainer, args={"max_steps": 1, "bf16": True}, teacher=teacher)
    assert seen == [torch.bfloat16]


def test_an_evaluation_has_the_loss_of_the_labels(train, tiny_bert, arguments, examples):
    trainer = train(PruningTrainer, args={"max_steps": 3}, teacher=tiny_bert(1))
    stock = Trainer(trainer.model, TrainingArguments(**arguments()))
    found, wanted = (t.evaluate(examples)["eval_loss"] for t in (trainer, stock))
    assert found == pytest.approx(wanted)


def test_a_student_comes_close_to_its_teacher(train, tiny_bert, examples):
    teacher = train(args={"max_steps": 150}).model
    options = {"max_steps": 150, "teacher_hardness": 1.0}
    trainer = train(
        PruningTrainer, args=options, args_cls=PruningArguments, model=tiny_bert(1), teacher=teacher
    )
    ids = full_batch(examples)["input_ids"]
    with torch.no_grad():
        logits = [m.cpu().eval()(ids).logits for m in (teacher, trainer.model, tiny_bert(1))]
    losses = [float(teacher_loss(z, logits[0], None, 1.0)) for z in logits[1:]]
    assert losses[0] < losses[1] / 4


def test_a_regression_learns_the_teachers_value(gradients, tiny_bert, examples):
    options = {"num_labels": 1, "problem_type": "regression", **NO_DROPOUT}
    model, teacher = tiny_bert(**options), tiny_bert(1, **options)
    rows = [{**e, "labels": float(e["labels"])} for e in examples[:32]]
    args = {"teacher_hardness": 1.0}
    found = gradients(model, teacher, args=args, train_dataset=rows)
    ids = full_batch(rows)["input_ids"]
    mse_loss(model(ids).logits, teacher.eval()(ids).logits.detach()).backward()
    assert_close(found, {n: p.grad for n, p in model.named_parameters()})
    assert_close(found, gradients(model, teacher, 4, args=args, train_dataset=rows))


def test_labels_in_another_order_are_put_into_the_students(gradients, tiny_bert):
    model, teacher = tiny_bert(**NO_DROPOUT), tiny_bert(1)
    model.config.id2label = {0: "no", 1: "yes"}
    teacher.config.id2label = {0: "no", 1: "yes"}
    plain = gradients(model, teacher)
    turned = copy.deepcopy(teacher)
    turned.config.id2label = {0: "YES", 1: "NO"}
    for parameter in turned.classifier.parameters():
        parameter.data = parameter.data.flip(0)
    assert_close(plain, gradients(model, turned))


def test_a_teacher_is_loaded_from_a_folder_and_named_in_the_record(train, tiny_bert, tmp_path):
    teacher = tiny_bert(1)
    teacher.save_pretrained(tmp_path / "teacher")
    args = {"max_steps": 4, "sparsity": 0.5, "num_cycles": 1, "teacher_hardness": 0.75}
    given = train(PruningTrainer, args=args, args_cls=PruningArguments, teacher=teacher)
    args["teacher"] = str(tmp_path / "teacher")
    loaded = train(PruningTrainer, args=args, args_cls=PruningArguments)
    for name, weight in given.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name]), name
    known = loaded.model_card().record.hyperparameters
    assert known["teacher"] == "BertForSequenceClassification"
    assert (known["teacher_hardness"], known["teacher_temperature"]) == (0.75, 2.0)
    loaded.save_model(tmp_path / "student")
    student = BertForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.state_dict().keys() == teacher.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher_hardness": 1.5}, ["teacher_hardness must be in [0, 1]", "1.5", "0.5"]),
        ({"teacher_hardness": "a"}, ["teacher_hardness must be", "'a'", "0.5"]),
        ({"teacher_temperature": 0}, ["teacher_temperature must be a number > 0", "0", "2.0"]),
        ({"teacher_temperature": math.inf}, ["teacher_temperature must be", "inf", "2.0"]),
        (
            {"teacher": 3},
            ["teacher must be a folder or a name", "int", "PruningTrainer"],
        ),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_on_construction(arguments, options, words):
    with pytest.raises(ValueError, match="must") as error:
        PruningArguments(**arguments(**options))
    assert [word for word in words if word not in str(error.value)] == []


def test_a_teacher_that_does_not_fit_is_refused(tiny_bert, arguments, tmp_path):
    def build(teacher, model=None, in_args=None):
        args = PruningArguments(**arguments(teacher=in_args))
        return PruningTrainer(model or tiny_bert(), args, teacher=teacher)

    model, three = tiny_bert(), tiny_bert(num_labels=3)
    three.save_pretrained(tmp_path / "three")
    BertForMaskedLM(model.config).save_pretrained(tmp_path / "language")
    with pytest.raises(
        ValueError, match=r"num_labels, 2; got 'Bert.*', whose num_labels is 3\. Pa"
    ):
        build(three)
    with pytest.raises(ValueError, match=r"num_labels, 2; got '.*three', whose num_labels is 3"):
        build(None, in_args=str(tmp_path / "three"))
    with pytest.raises(ValueError, match=r"must have a head .*language', a BertForMaskedLM\. Pass"):
        build(str(tmp_path / "language"))
    with pytest.raises(ValueError, match=r"got '.*nowhere': .*\. Check its spelling"):
        build(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"teacher must be a model, a folder .*; got 3\. Pass"):
        build(3)
    with pytest.raises(ValueError, match=r"must be whole in every process; .*Pass its folder"):
        build(tiny_bert(1).to("meta"))
    with pytest.raises(ValueError, match="another model than the one that is trained"):
        build(model, model)
    with pytest.raises(ValueError, match="teacher must be given once"):
        build(tiny_bert(1), in_args="somewhere")
    with pytest.raises(ValueError, match="teacher='self' is for hf-cyclprune glue"):
        build(None, in_args="self")
    with pytest.raises(ValueError, match=r"must be left out with .*multi_label.*Leave it out"):
        build(tiny_bert(1), tiny_bert(problem_type="multi_label_classification"))
