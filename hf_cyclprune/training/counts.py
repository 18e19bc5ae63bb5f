"""The zeros of a run's model, counted in its weights as they are, or as they are being saved."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.engines.shards import Shards, plain_name
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport


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

    def of_saved(self, model: nn.Module, cycles: Sequence[CycleReport]) -> SparsityReport:
        """Return the report for a card; asks no other rank.

        Raises:
            ValueError: the weights are divided among ranks, and were not saved.
        """
        if not self._shards.ranks.is_divided:
            return self.of_model(model, cycles)
        if self._saved is None:
            raise ValueError(
                "A card of a model whose weights are divided among processes describes its saved "
                "weights; there are none. Call save_model() on all processes first."
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
            state_dict: the whole weights; None or {} where another rank writes them.
            is_everybody_here: all ranks call this, to save the weights that are in the model.
        """
        if not self._shards.ranks.is_divided:
            return
        if is_everybody_here:
            self._saved = self.of_model(model, cycles)
        elif state_dict:
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
