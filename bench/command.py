"""What the commands of bench/ share: their flags, the machine they name, the file they write.

    arguments = command.parse(command.parser(__doc__, repeats=15))
    about = command.announce(arguments.threads)
    command.write_json(arguments.json, about, rows=results)

Used by report.py, options.py, growth.py, layer.py and pauses.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path

import machine
import numpy as np
import peers

import selfattn


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
    config = selfattn.show_config(mode="dicts")
    versions = {
        peer.name: peer.version() for peer in peers.contenders() if peer.name != "reference"
    }
    about = {
        "cpu": machine.cpu_name(),
        "cores": os.cpu_count(),
        "threads": num_threads,
        "isa": config["isa"],
        "compiler": config["compiler"],
        "system": " ".join((platform.system(), platform.release().partition("-")[0])),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **versions,
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    return about


def write_json(file, about, **results):
    """Write the results to `file`, unless it is None."""
    if file is not None:
        values = plain({"machine": about, **results})
        file.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def plain(x):
    """`x` for JSON: floats in it rounded to what was measured, None where nothing was."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return x
