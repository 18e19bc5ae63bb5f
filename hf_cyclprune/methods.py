"""The named methods: what `PruningConfig(method=...)` means, one row each.

A method is a set of values for the fields of `PruningConfig`; a field that the user gives goes
before the method's. To add one, put a `Method` into `METHODS`: nothing else has to change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_cyclprune.papers import PAPERS, Paper


@dataclass(frozen=True)
class Plan:
    """A `PruningConfig` with every choice made: the user's, or else the method's, or else these.

    These defaults are the paper's (https://arxiv.org/abs/2202.01290): magnitude, four cycles,
    sparsity resets to half of the target, four fifths of a cycle climb, and the learning rate
    restarts with every cycle. The fields have the names and meanings of the config's.
    """

    criterion: str = "magnitude"
    num_cycles: int = 4
    reset_ratio: float = 0.5
    ramp: str = "cubic"
    ramp_ratio: float = 0.8
    levels: str = "constant"
    rise_ratio: float = 0.8
    recompute: str = "climb"
    interval_steps: int | None = None
    initial_sparsity: float = 0.0
    initial_criterion: str | None = None
    lr_restarts: bool = True


@dataclass(frozen=True)
class Method:
    """One row of the table of methods."""

    title: str
    """In running text, after "with": "cyclical pruning"."""
    formula: str
    """Sparsity s over the position x in [0, 1] of a cycle (or of the run), in one line."""
    sentence: str
    """What happens to the weights; `{num_cycles}` and the other fields of a plan are filled in."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Fields of `PruningConfig` -> the method's values, where they are not those of `Plan`."""
    paper: Paper | None = None
    tag: str | None = None
    """On the Hub."""
    training: Mapping[str, object] = field(default_factory=dict)
    """Training arguments that `hf-cyclprune glue` sets unless the user gives them."""


METHODS: dict[str, Method] = {
    "cyclical": Method(
        title="cyclical pruning",
        formula="s_t (1 - (1 - d) (1 - x)^3), d = 0, then 0.5; k cycles",
        sentence="In each of {num_cycles} cycles sparsity climbs ({ramp}) to the target over the "
        "first {ramp_ratio} of the steps and stays there for the rest. Every cycle but the first "
        "starts from {reset_ratio} of the target.",
        paper=PAPERS["srinivas2022cyclical"],
        tag="cyclical-pruning",
    ),
    "gradual": Method(
        title="gradual pruning",
        formula="s_t (1 - (1 - x)^3)",
        sentence="Sparsity climbs ({ramp}) to the target over the first {ramp_ratio} of the run "
        "and stays there.",
        settings={"num_cycles": 1},
        paper=PAPERS["zhu2017prune"],
        tag="gradual-pruning",
    ),
    "gradual_restarts": Method(
        title="gradual pruning with learning-rate restarts",
        formula="s_t (1 - (1 - x)^3) over the run; k learning-rate cycles",
        sentence="Sparsity climbs ({ramp}) to the target over the first {rise_ratio} of the run "
        "and stays there.",
        settings={"levels": "rising", "ramp_ratio": 0.3, "reset_ratio": 1.0},
        paper=PAPERS["kurtic2022optimal"],
        tag="gradual-pruning",
    ),
    "rising": Method(
        title="rising cycles, a variant of cyclical pruning",
        formula="s_t r(x) over the run, dipping to 0.8 of that at each edge",
        sentence="Sparsity climbs ({ramp}) to the target over the first {rise_ratio} of the run. "
        "At the start of each of the {num_cycles} cycles but the first it falls to {reset_ratio} "
        "of that climb's height, and it is back on the climb after {ramp_ratio} of the cycle.",
        settings={"levels": "rising", "ramp_ratio": 0.3, "reset_ratio": 0.8},
        paper=PAPERS["srinivas2022cyclical"],
        tag="cyclical-pruning",
    ),
    "one_shot": Method(
        title="one-shot pruning",
        formula="s_t from the first step on",
        sentence="All zeros are set at the first step; the rest of the run is fine-tuning.",
        settings={"num_cycles": 1, "ramp_ratio": 0.0},
        paper=PAPERS["han2015learning"],
        tag="one-shot-pruning",
    ),
    "iterative": Method(
        title="iterative pruning",
        formula="s_t (c + 1) / k in cycle c = 0..k-1",
        sentence="Sparsity rises to the target in {num_cycles} equal stairs, each followed by a "
        "cycle of fine-tuning.",
        settings={"levels": "stairs", "ramp_ratio": 0.0, "reset_ratio": 1.0},
        paper=PAPERS["han2015learning"],
        tag="iterative-pruning",
    ),
    "frozen_restarts": Method(
        title="gradual pruning in the first of several cycles, the control of cyclical pruning",
        formula="s_t (1 - (1 - x)^3) in the first cycle, then its masks; k learning-rate cycles",
        sentence="In the first of {num_cycles} cycles sparsity climbs ({ramp}) to the target over "
        "the first {ramp_ratio} of the steps. The masks do not change after that cycle.",
        settings={"recompute": "first_cycle", "reset_ratio": 1.0},
        paper=PAPERS["srinivas2022cyclical"],
        tag="gradual-pruning",
    ),
    "ac_dc": Method(
        title="AC/DC, alternating compressed and decompressed training",
        formula="0 for x < 0.5, then s_t; k cycles, one learning-rate schedule",
        sentence="Each of {num_cycles} cycles trains the dense model for its first {ramp_ratio} "
        "and the sparse one, at the target, for the rest. Every dense phase restarts the pruned "
        "weights from zero.",
        settings={
            "ramp": "step",
            "ramp_ratio": 0.5,
            "reset_ratio": 0.0,
            "recompute": "edges",
            "lr_restarts": False,
        },
        paper=PAPERS["peste2021acdc"],
        tag="ac-dc",
    ),
    "one_cycle": Method(
        title="one-cycle pruning",
        formula="s_t (1 + e^(b-a)) / (1 + e^(b-ax)), a = 14, b = 5",
        sentence="Sparsity follows one S-shaped ({ramp}) climb, which takes {ramp_ratio} of the "
        "run.",
        settings={"num_cycles": 1, "ramp": "logistic", "ramp_ratio": 1.0},
        paper=PAPERS["hubens2022onecycle"],
        tag="one-cycle-pruning",
        training={"lr_scheduler_type": "cosine", "warmup_steps": 0.25},
    ),
    "pgd": Method(
        title="projected gradient descent, or iterative hard thresholding",
        formula="s_t at every step, masks recomputed after each",
        sentence="The target sparsity holds from the first step on, and the masks are recomputed "
        "during the whole run (interval in optimizer steps: {interval_steps}).",
        settings={
            "num_cycles": 1,
            "ramp_ratio": 0.0,
            "recompute": "always",
            "interval_steps": 1,
        },
        paper=PAPERS["blumensath2009iterative"],
        tag="iterative-hard-thresholding",
        training={"lr_scheduler_type": "constant"},
    ),
    "sculpt": Method(
        title="SCULPT-ing, cyclic training of a sparse mask and one final cut",
        formula="s_0 = 0.5 (random masks) in all cycles but the last, then s_t",
        sentence="The run starts from masks at a sparsity of {initial_sparsity}, chosen by the "
        "criterion '{initial_criterion}'. They stay for all of the {num_cycles} cycles but the "
        "last, which begins with one cut to the target.",
        settings={
            "levels": "last",
            "ramp_ratio": 0.0,
            "reset_ratio": 1.0,
            "recompute": "edges",
            "initial_sparsity": 0.5,
            "initial_criterion": "random",
        },
        paper=PAPERS["gadhikar2024cyclic"],
        tag="sculpt",
    ),
    "hold": Method(
        title="its zeros kept in place",
        formula="the zeros of the model, at every step",
        sentence="The zeros that the model came with stayed zero; none were added.",
        settings={"recompute": "never", "num_cycles": 1, "lr_restarts": False},
    ),
}
"""Every method under the name that `PruningConfig.method` and `--method` take."""
