"""`inazuma diff RUN_A RUN_B`: the first batch and component in which two runs part."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from inazuma.callbacks.digest_file import COMPONENTS, Comparison, Difference, Digest, compare, read_digest

WHAT_IT_MEANS = {
    "position": "The runs do not train the same batch there: epochs have other lengths, or steps another window.",
    "data": "The batch itself differs: its samples, their order or their augmentation.",
    "noise": "The batch is the same, but the random generators stand elsewhere when its forward pass begins.",
    "loss": "Batch and random generators are the same, but the forward pass gives another loss.",
    "gradient": "The loss is the same, but the gradient differs: the backward pass, or what changes gradients.",
    "weights": "The gradient is the same, but the weights behind the step differ: the optimizer or its state.",
}


def add_to(subparsers: Any) -> None:
    """Add the command to the parser of `inazuma`."""
    parser = subparsers.add_parser(
        "diff",
        help="name the first batch in which two runs part, and in what",
        description=(
            "Compare the digests of two runs, from the first position that both have. Says in which batch they part "
            f"and in what: {', '.join(COMPONENTS)}, in the order in which one causes the next. Runs keep a digest with "
            "Trainer(callbacks=[RunDigest()])."
        ),
        epilog="Exit codes: 0 identical, 1 they part, 2 they cannot be compared.",
    )
    parser.add_argument("one", metavar="RUN_A", help="the folder of a run, or its digest.bin")
    parser.add_argument("other", metavar="RUN_B")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        digests = read_digest(args.one), read_digest(args.other)
    except (OSError, ValueError) as error:
        print(f"inazuma diff: {error}", file=sys.stderr)
        return 2
    found = compare(*digests)
    if found.start is None:
        print(f"The runs have no batch in common: {_extent(digests[0])}, {_extent(digests[1])}.", file=sys.stderr)
        return 2
    print("\n".join(report(found, (args.one, args.other))))
    return 0 if found.difference is None else 1


def _extent(digest: Digest) -> str:
    return f"{digest.path} has {f'{digest[0]} to {digest[-1]}' if digest else 'none'}"


def report(found: Comparison, names: Sequence[str]) -> list[str]:
    """What two runs have in common, and the table of the batch in which they part."""
    if found.start is None or found.difference is None:
        lines = [f"identical: {found.batches} batches"]
        if found.start is not None and found.start > (0, 0):
            lines[0] += f", from epoch {found.start[0]}, batch {found.start[1]} on"
        lines += [
            f"{name} goes on for {more} batches more" for name, more in zip(names, found.left, strict=True) if more
        ]
        return lines
    return [*describe(found.difference, names), f"{found.batches} batches before it are identical."]


def describe(difference: Difference, names: Sequence[str]) -> list[str]:
    """Where and in what two runs part, and both records side by side."""
    one, other, component = difference.one, difference.other, difference.component
    width = max(15, *map(len, names))  # of a loss: -1.23456789e-100
    lines = [f"the runs part at {one}: {component}", WHAT_IT_MEANS[component], ""]
    lines.append(f"{'':10}{names[0]:>{width + 2}}{names[1]:>{width + 2}}")
    for name in ("epoch", "batch", "step", *COMPONENTS):
        values = [getattr(record, name) for record in (one, other)]
        shown = [f"{v:.9g}" if isinstance(v, float) else f"{v:08x}" if name in COMPONENTS else str(v) for v in values]
        mark = "  <" if name == component or (component == "position" and values[0] != values[1]) else ""
        if name in COMPONENTS or component == "position":
            lines.append(f"{name:10}{shown[0]:>{width + 2}}{shown[1]:>{width + 2}}{mark}")
    return lines
