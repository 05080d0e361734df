"""Callbacks that print what the module consists of before it is trained."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inazuma.callbacks.callback import Callback
from inazuma.callbacks.progress.rich_progress import RichProgressBar
from inazuma.callbacks.progress.views import is_notebook, is_terminal
from inazuma.ranks import rank_zero_info
from inazuma.seed import isolate_rng
from inazuma.summary import Columns, format_summary, summarize, summary_totals

if TYPE_CHECKING:
    from inazuma.callbacks.progress.progress_bar import ProgressBar
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class ModelSummary(Callback):
    """Log a table of the module's layers when fit begins, on rank 0.

    Args:
        max_depth: how deep to look: 1 lists the children, 2 their children too, -1 everything; 0 prints nothing.
        **summarize_kwargs: handed to `summarize`, for a subclass that overrides it.

    Raises:
        ValueError: `max_depth` is below -1.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if max_depth < -1:
            raise ValueError(
                f"{type(self).__name__}(max_depth={max_depth}): use -1 (all layers), 0 (no summary) or a depth."
            )
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_depth == 0:
            return
        # On all ranks: the forward of an example input, where there is one, may hold collectives.
        summary = summarize(pl_module, max_depth=self._max_depth)
        if trainer.is_global_zero:
            self.summarize(
                summary.columns(),
                summary.total_parameters,
                summary.trainable_parameters,
                summary.model_size,
                summary.total_training_modes,
                summary.total_flops,
                **self._summarize_kwargs,
            )

    @staticmethod
    def summarize(
        summary_data: Columns,
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Show the summary. Override it to show it elsewhere.

        Args:
            summary_data: the columns, each a pair of head and cells.
            total_parameters: in the whole module.
            trainable_parameters: those with `requires_grad`.
            model_size: megabytes of the parameters.
            total_training_modes: number of modules in mode "train" and in mode "eval".
            total_flops: of the forward of the example input.
            **summarize_kwargs: as given to the constructor; not used here.
        """
        table = format_summary(
            summary_data, total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        )
        rank_zero_info("\n%s", table)


class RichModelSummary(ModelSummary):
    """The same, drawn with rich. Where the console is no terminal, as text.

    Args:
        max_depth: how deep to look, as for `ModelSummary`.
        **summarize_kwargs: `header_style`, a rich style for the head of the table; default "bold magenta".

    Raises:
        ModuleNotFoundError: rich is not installed.
        ValueError: `max_depth` is below -1.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if find_spec("rich") is None:
            raise ModuleNotFoundError(
                f"`{type(self).__name__}` needs rich, which is not installed. Run `pip install inazuma[rich]`."
            )
        super().__init__(max_depth, **summarize_kwargs)

    @staticmethod
    @isolate_rng()  # rich draws a random number when it is imported
    def summarize(
        summary_data: Columns,
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        import rich
        from rich.table import Table

        console = rich.get_console()
        totals = (total_parameters, trainable_parameters, model_size, total_training_modes, total_flops)
        if not is_terminal(console.file) and not is_notebook():
            # rich would fold the table to 80 columns there.
            ModelSummary.summarize(summary_data, *totals)
            return
        table = Table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        for head, _ in summary_data:
            table.add_column(
                head,
                style="dim" if head == " " else None,
                justify="left" if head in (" ", "Name", "Type", "Mode") else "right",
                no_wrap=head == "Name",
            )
        for row in zip(*(cells for _, cells in summary_data), strict=True):
            table.add_row(*row)
        console.print(table)
        for name, value in summary_totals(*totals).items():
            console.print(f"[bold]{name}[/]: {value}", highlight=False)


def default_model_summary(bar: ProgressBar | None) -> ModelSummary:
    """The summary of a Trainer that was given none; it matches the progress bar `bar`."""
    return RichModelSummary() if isinstance(bar, RichProgressBar) else ModelSummary()
