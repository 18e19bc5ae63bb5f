"""The zeros of a run's model, counted in its weights as they are, or as they are being saved."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.engines.shards import Shards, plain_name
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport

SAVE_WHOLE = (
    "Whole weights are saved by save_model() on all processes, with FULL_STATE_DICT (FSDP) or "
    "stage3_gather_16bit_weights_on_model_save (ZeRO-3)."
)


class Counts:
    """Makes the reports of a run.

    Where weights are divided among ranks, all of these must join in to count them. But a card is
    written by one rank alone: it describes the weights that were saved last, which were counted in
    the whole weights that were handed over to be written.
    """

    def __init__(self, config: PruningConfig, shards: Shards) -> None:
        self._config, self._shards = config, shards
        self._saved: SparsityReport | None = None

    def of_model(self, model: nn.Module, cycles: Sequence[CycleReport]) -> SparsityReport:
        """Count the zeros in the model as it is now; of divided weights, those of targets alone."""
        if self._shards.ranks.is_divided:
            return self._count(self._shards.wholes, None, cycles)
        weights = {name: model.get_parameter(name) for name in self._shards}
        return self._count(weights, model.parameters(), cycles)

    @property
    def are_saved_known(self) -> bool:
        """Whether there is a report for a card in this process."""
        return self._saved is not None or not self._shards.ranks.is_divided

    def of_saved(self, model: nn.Module, cycles: Sequence[CycleReport]) -> SparsityReport:
        """Return the report for a card; asks no other rank.

        Raises:
            ValueError: the weights are divided among ranks, and no whole ones were saved here.
        """
        if not self._shards.ranks.is_divided:
            return self.of_model(model, cycles)
        if self._saved is None:
            raise ValueError(
                "A card of a model whose weights are divided among processes describes the whole "
                f"weights that were saved last, but none were. {SAVE_WHOLE}"
            )
        return self._saved

    def look_at_saved(
        self,
        model: nn.Module,
        cycles: Sequence[CycleReport],
        state_dict: Mapping[str, Tensor] | None,
        is_everybody_here: bool,
    ) -> None:
        """Count what is about to be saved.

        Args:
            model: whose weights they are.
            cycles: the finished ones.
            state_dict: the whole weights; None or {} where another rank writes them, or none does.
            is_everybody_here: all ranks call this, to save the weights that are in the model.
        """
        if not self._shards.ranks.is_divided:
            return
        if is_everybody_here:
            self._saved = self.of_model(model, cycles)
        elif not state_dict:
            self._saved = None
        else:
            names = {plain_name(name) for name, _ in model.named_parameters()}
            parameters = [tensor for name, tensor in state_dict.items() if name in names]
            weights = {name: state_dict[name] for name in self._shards}
            self._saved = self._count(weights, parameters, cycles)

    def _count(
        self,
        weights: Mapping[str, Tensor],
        parameters: Iterable[Tensor] | None,
        cycles: Sequence[CycleReport],
    ) -> SparsityReport:
        return SparsityReport.measure(
            weights,
            patterns=[*CHECKED_PATTERNS, self._config.pattern],
            cycles=cycles,
            target_sparsity=self._config.target_sparsity,
            parameters=parameters,
        )
