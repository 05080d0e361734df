"""The batches of training epochs, from any position: a resumed run sees what the straight run would have seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from inazuma.data.loaders import Loaders
from inazuma.data.parts import is_exact, is_map_style, is_stateful
from inazuma.errors import CheckpointError
from inazuma.progress import Progress
from inazuma.ranks import rank_zero_warn


def knows_its_end(loader: Any) -> bool:
    """Whether the length of a loader can be relied on; the end of others is seen by looking one batch ahead."""
    return hasattr(loader, "__len__") and (is_map_style(loader) or not isinstance(loader, DataLoader))


class Batches:
    """The batches of a training epoch, and what is needed to enter the epoch in its middle.

    Args:
        loaders: of training.
        at: the position of the run.
    """

    def __init__(self, loaders: Loaders, at: Progress) -> None:
        self.loaders, self.at = loaders, at
        self._resumed: dict[str, Any] | None = None  # the state of the run that is resumed, until batches are asked for
        self._positions: list[Any] | None = None  # of stateful loaders, before the batch that was looked ahead

    def begin_epoch(self) -> None:
        """An epoch begins at its first batch: nothing is taken up from inside another one."""
        self._positions = None
        for part in self.loaders.walks:
            part.start = None
        if self._resumed is not None and self.loaders.opened_in_epoch != self._resumed["opened_in_epoch"]:
            self._resumed = None  # new loaders are walked from this epoch on
        if self._resumed is not None:
            self._resumed["parts"] = [{**part, "start": None} for part in self._resumed["parts"]]

    def epoch(self, done: int) -> Iterator[tuple[Any, bool]]:
        """The batches of this epoch behind the first `done`, each with whether it is the last one."""
        total = self.loaders.num_batches
        if not math.isinf(total) and all(knows_its_end(part) for part in self.loaders.parts):
            for index, batch in enumerate(self._stream(done, int(total) - done), done + 1):
                yield batch, index == total
                if index == total:
                    return
        else:
            yield from _looking_ahead(self._stream(done), total - done, self._note_positions)

    @property
    def indices(self) -> Any:
        """What the sampler gave for the batch in work, usually the indices of its samples; a list for several loaders.

        None where it is not known: streams, and loaders that are no DataLoader.
        """
        if not all(knows_its_end(part) for part in self.loaders.parts):
            return None  # the next batch was loaded already
        indices = [part.indices for part in self.loaders.walks]
        return indices[0] if len(indices) == 1 else indices

    def _stream(self, done: int, most: int | None = None) -> Iterator[Any]:
        loaders, combined = self.loaders, self.loaders.combined
        assert combined is not None
        resumed = self._take_resumed()
        if loaders.loaders is loaders.parts[0]:  # one plain loader: nothing to combine
            return self._open(0, done, resumed, most)
        taken = done

        def open_part(_: Any, index: int) -> Iterator[Any]:
            return self._open(index, taken, resumed, None)

        def rows() -> Iterator[Any]:
            nonlocal taken
            stream = iter(combined)
            for part in loaders.walks:
                part.launch()
            for batch, _, _ in stream:
                taken += 1
                yield batch

        combined.open_part = open_part
        combined.restarted = {index for index, start in resumed.items() if start["at"] > 0}
        return rows()

    def _open(self, index: int, taken: int, resumed: dict[int, Any], most: int | None) -> Iterator[Any]:
        """Start one part, or take it up where the run that is resumed was."""
        part = self.loaders.walks[index]
        if resumed.pop(index, None) is not None:
            return part.go_on(taken, most)
        return part.begin(self.at.epoch, taken, most)

    def _take_resumed(self) -> dict[int, Any]:
        """Give the parts the states they had in the run that is resumed. Returns where those inside a pass began."""
        state, self._resumed = self._resumed, None
        if state is None:
            return {}
        parts = self.loaders.walks
        if len(state["parts"]) != len(parts):
            if not self.loaders.exact:
                return {}
            raise CheckpointError(
                f"train loaders: the checkpoint has {len(state['parts'])}, this run has {len(parts)}. Give as many as "
                "in the run that wrote the file, or `Trainer(exact_resume=False)` to begin with the data anew."
            )
        for part, saved in zip(parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        starts = {index: saved["start"] for index, saved in enumerate(state["parts"]) if saved["start"] is not None}
        if not starts or not self.loaders.exact or all(is_exact(saved) for saved in state["parts"]):
            return starts
        if any(saved["position"] is None for saved in state["parts"]):
            rank_zero_warn(
                "The checkpoint was written with Trainer(exact_resume=False), inside an epoch, and does not say which "
                f"samples the epoch has had: `{self.loaders.name}` begins anew, for the batches that are left of it."
            )
        return {}

    def _note_positions(self) -> None:
        """A batch more than was given is about to be fetched: what a checkpoint holds is the position before it."""
        if any(is_stateful(part) for part in self.loaders.parts):
            self._positions = [part.position() for part in self.loaders.walks]

    def state_dict(self) -> dict[str, Any]:
        if self._resumed is not None:
            return self._resumed
        states = [part.state_dict() for part in self.loaders.walks]
        if self._positions is not None:
            states = [{**s, "position": p} for s, p in zip(states, self._positions, strict=True)]
        return {"parts": states, "opened_in_epoch": self.loaders.opened_in_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = dict(state)
        self.loaders.opened_in_epoch = state["opened_in_epoch"]


def _looking_ahead(
    stream: Iterator[Any], most: int | float, before_fetch: Callable[[], None]
) -> Iterator[tuple[Any, bool]]:
    """Each item with whether it is the last: the next one, or the end, is seen before."""
    missing = object()
    stream = stream if math.isinf(most) else islice(stream, int(most))
    item = next(stream, missing)
    while item is not missing:
        before_fetch()
        following = next(stream, missing)
        yield item, following is missing
        item = following
