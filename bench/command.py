"""What the commands of bench/ share: their flags, the machine they name, the file they write.

    arguments = command.parse(command.parser(__doc__, repeats=15))
    about = command.announce(arguments.threads)
    command.write_json(arguments.json, about, rows=results)

Used by report.py, options.py, growth.py, layer.py and pauses.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from selfattn.bench import machine, measure
from selfattn.bench.measure import plain


def parser(doc, repeats, json_flag="--json", repeats_help="samples of each that count"):
    """A parser of --threads, --repeats and a file for the results; `doc` is the module's."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=machine.available_threads())
    parser.add_argument("--repeats", type=int, default=repeats, help=repeats_help)
    parser.add_argument(
        json_flag, type=Path, dest="json", metavar="FILE.json", help="write the results there too"
    )
    return parser


def parse(parser):
    """The arguments of the process."""
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return arguments


def names(text):
    """The type of a flag that takes names, separated by commas."""
    return text.split(",")


def announce(num_threads):
    """Print, and return, the machine and the software that the figures are of."""
    about = measure.about(num_threads)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    return about


def write_json(file, about, **results):
    """Write the results to `file`, unless it is None."""
    if file is not None:
        values = plain({"machine": about, **results})
        file.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
