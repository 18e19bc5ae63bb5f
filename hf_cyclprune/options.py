"""The options of a user, with the help texts of their flags."""

from dataclasses import dataclass, field
from typing import Any

from hf_cyclprune.methods import METHODS
from hf_cyclprune.pruning import activations, criteria, lookahead, observers  # noqa: F401
from hf_cyclprune.pruning.criterion import CRITERIA
from hf_cyclprune.pruning.pruned_weights import PRUNED_WEIGHTS
from hf_cyclprune.pruning.ramps import RAMPS
from hf_cyclprune.pruning.recovery import REGROWTH_AT
from hf_cyclprune.pruning.schedules import LEVELS, RECOMPUTE


def _option(meaning: str, default: object = None) -> Any:
    """A field with the help text of its flag."""
    return field(default=default, metadata={"help": meaning})


@dataclass
class PruningOptions:
    """The fields of `PruningConfig`, which gives them their meaning."""

    method: str = _option(
        f"A named set of the options below: {', '.join(METHODS)}. Options that you give go before "
        "the method's.",
        "rising",
    )
    sparsity: float | None = _option(
        "Fraction of the target weights that is zero at the end, in [0, 1). An n:m pattern implies "
        "it.",
    )
    pattern: str = _option(
        "Where zeros may fall: 'unstructured' (anywhere), or 'n:m', which keeps n of every m input "
        "features, such as '2:4'.",
        "unstructured",
    )
    scope: str | None = _option(
        "Unstructured only: which weights are ranked together. 'global' ranks all matrices "
        "together, 'layer' prunes every one alike, 'erk' prunes large ones more. By "
        "default the method decides: 'rising' ranks globally, most others in layers.",
    )
    layer_sparsities: list[str] | None = _option(
        "Unstructured only: 'EXPRESSION=SPARSITY' for the weights whose names match a regular "
        "expression; the others make up the total. While sparsity climbs, all climb in proportion."
    )
    min_density: float | None = _option(
        "Scope 'global' only: share of every matrix that is kept in any case, in [0, 1]."
    )
    criterion: str | None = _option(
        f"How weights are scored; the lowest are pruned: {', '.join(CRITERIA)}."
    )
    num_cycles: int | None = _option(
        "Number of climbs to the target sparsity, or of dips on one long climb. More cycles need a "
        "longer training."
    )
    reset_ratio: float | None = _option(
        "Sparsity at the start of a later cycle, as a fraction of the sparsity before it. Raise it "
        "where a cycle is too short to climb from low. The default method dips to 0.95, "
        "or less deep where the target is above 0.9.",
    )
    ramp: str | None = _option(f"Shape of a climb: {', '.join(RAMPS)}.")
    ramp_ratio: float | None = _option(
        "Share of a cycle in which it climbs. The rest is fine-tuning at a fixed mask, unless a "
        "rising level still climbs."
    )
    levels: str | None = _option(
        f"What the cycles climb to: {', '.join(LEVELS)}. 'constant': the target; 'rising': one "
        "climb over the whole run, below which the cycles dip; 'stairs': equal steps; 'last': only "
        "the last cycle leaves the initial sparsity.",
    )
    rise_ratio: float | None = _option(
        "Rising levels only: share of the run in which the level climbs to the target."
    )
    recompute: str | None = _option(
        f"When masks are recomputed: {', '.join(RECOMPUTE)}. 'climb': while sparsity climbs; "
        "'edges': only where it jumps; 'always': in fine-tuning too; 'first_cycle': as 'climb', "
        "then frozen; 'never': the model's zeros stay.",
    )
    interval_steps: int | None = _option(
        "Optimizer steps between two pruning steps of a climb. By default it is chosen from the "
        "climb's length, between 1 and 100.",
    )
    initial_sparsity: float | None = _option(
        "Sparsity with which the first cycle begins. Raise it to prune much at once."
    )
    initial_criterion: str | None = _option("Criterion of the first cycle, if it is another one.")
    pruned_weights: str | None = _option(
        f"What a pruned weight is meanwhile: {', '.join(PRUNED_WEIGHTS)}. It returns from zero, "
        "with the value it had when it was pruned ('stored') or before training ('pretrained'), or "
        "goes on learning ('latent'); with 'decay' it fades away."
    )
    pruned_decay: float | None = _option(
        "How fast latent or fading values shrink, in [0, 1]; see the policies 'latent' and 'decay'."
    )
    flow_ratio: float | None = _option(
        "Share of a cycle in which latent or fading values change; then they wait, or are zero."
    )
    regrowth: str | None = _option(
        "Criterion by which pruned weights return in exchange for kept ones, or 'none': "
        f"{', '.join(CRITERIA)}."
    )
    regrowth_ratio: float | None = _option(
        "Share of the kept weights that is exchanged at the start of the run; it falls to 0."
    )
    regrowth_until: float | None = _option("Share of the run after which nothing is exchanged.")
    regrowth_at: str | None = _option(
        f"When pruned weights may return: {', '.join(REGROWTH_AT)}. 'steps': whenever masks are "
        "computed; 'edges': at the start of a cycle, by regrowth or where sparsity falls there; "
        "'until_last_edge': as 'steps', but not after the last edge (with one cycle: never)."
    )
    protect_ratio: float | None = _option(
        "Share of a cycle in which a weight that was exchanged is not pruned again."
    )
    reset_momentum: bool = _option(
        "Set the momentum of a weight that comes back to 0: Adam's first moment, or SGD's buffer. "
        "By default it is what the gradients made of it meanwhile.",
        False,
    )
    lr_restarts: bool | None = _option("Run the whole learning-rate schedule once in every cycle.")
    restart_decay: float | None = _option(
        "Factor by which the learning rate's peak shrinks with every restart."
    )
    ema_decay: float | None = _option(
        "Decay, in [0, 1), of an exponential moving average of the weights, from the last change "
        "of the masks on. The model holds it at the end, unless the best model is loaded."
    )
    targets: list[str] | None = _option(
        "Regular expressions of the weights to prune, instead of all Linear layers in the "
        "transformer's blocks.",
    )
    ignore: list[str] | None = _option("Regular expressions of weights that stay dense.")
    pruning_seed: int = _option("Seed of criteria that draw random numbers.", 0)
    eval_cycle_ends: bool = _option("Evaluate at the end of every cycle.", False)
    save_cycle_ends: bool = _option("Save a checkpoint at the end of every cycle.", False)
    fix_loss_scaling: bool = _option(
        "Undo that transformers 5 multiplies the loss of BERT-style heads by the number of "
        "accumulation steps and of processes.",
        True,
    )
