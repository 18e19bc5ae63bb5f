"""The command `hf-cyclprune VERB`: each verb is a few lines over the public API."""

import argparse
import sys
from collections.abc import Sequence

from hf_cyclprune.secrets import redact
from hf_cyclprune.verbs import folders, runs, speed  # noqa: F401  each registers its verbs
from hf_cyclprune.verbs.registry import VERBS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, or 1 after one line on stderr about a user's error."""
    parser = argparse.ArgumentParser(
        prog="hf-cyclprune", description="Cyclical pruning for transformers."
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb, arguments in VERBS.items():
        name, text = verb.__name__.removeprefix("_"), verb.__doc__ or ""
        # glue parses its many flags itself, --help included
        added = verbs.add_parser(name, help=text, description=text, add_help=name != "glue")
        added.set_defaults(run=verb)
        for argument, settings in arguments:
            added.add_argument(argument, **settings)
    options, flags = parser.parse_known_args(argv)
    values = vars(options)
    run = values.pop("run")
    if run.__name__ == "_glue":
        values["flags"] = flags
    elif flags:
        parser.error(f"unrecognized arguments: {' '.join(redact(flags))}")
    try:
        run(**values)
    except (ValueError, OSError, ImportError) as error:
        print(f"hf-cyclprune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
