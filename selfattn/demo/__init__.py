"""What `selfattn demo` runs: self-attention on real numbers, shown step by step.

    no sentence           example.embedded -> walk -> show_walk: every step on "I am a student"
    a sentence, MiniLM    minilm -> heads -> show_head: the heads in which a word attends sharply
    a sentence, --steps,  words -> example.hashed -> walk -> show_walk: every step on the user's
    or no MiniLM          words
    --bits                bits -> show: sentences whose embedding is the same alone and in a batch

    words.py     sentence -> words            measure.py  time, difference from the truth
    example.py   vectors and fixed weights    minilm.py   the sentence encoder (gelu.py its GELU)
    walk.py      the four steps               heads.py    choice of heads, maps over words
    bits.py      alone and in a batch         torch_minilm.py   the encoder in PyTorch
    show*.py     the pages in a terminal      tables.py   their tables and heat maps
    picture.py   the same as PNG files        learn/      `selfattn demo --train`: it learns

Called by `cli.py`.
"""

from __future__ import annotations

from pathlib import Path

from .words import DemoError, clean, positions, printable, split

__all__ = ["DemoError", "count_bits", "run"]

_MOST_WORDS = 1000  # of the walk, which holds the whole map


def run(
    sentence: str | None = None,
    word: str | None = None,
    console=None,
    *,
    steps: bool = False,
    head: str | None = None,
    png: str | None = None,
) -> None:
    """Run the demo on a sentence, or on the embedded example, and show it.

    Parameters
    ----------
    sentence : str, optional
    word : str, optional
        The word to look at.
    console : rich.console.Console, optional
        Where to show it; the terminal unless given.
    steps : bool
        Whether to show the steps on the sentence though MiniLM is installed.
    head : str, optional
        The head of MiniLM to show, as "6.12" (layer and head, from 1), in place of the sharpest.
    png : str, optional
        Where to write a picture of it.

    Raises
    ------
    DemoError
        When the sentence, the word or the head cannot be shown.
    ModuleNotFoundError
        When rich, Matplotlib for `png`, or what reads the weights of MiniLM, is not installed.
    OSError
        When the picture cannot be written.
    """
    from . import minilm, show

    if png is not None:
        from . import picture

        picture.check(Path(png))
    console = console or show.terminal()
    if sentence is not None and not steps and minilm.is_installed():
        from . import heads, show_head

        found = heads.sharpest(minilm.MiniLM(), sentence, word, head)
        show_head.show(console, word, found)
        if png is not None:
            picture.heads(Path(png), found)
    elif head is not None:
        raise DemoError(f"--head needs the weights of MiniLM: {minilm.INSTALL}")
    else:
        result, focus = _walk(console, sentence, word)
        if png is not None:
            picture.walk(Path(png), result, focus)
    if png is not None:
        console.print()
        show.say(console, f"The picture: {printable(png)}")


def count_bits(console=None) -> None:
    """Embed sentences alone and in batches, count those whose bits are the same, and show it.

    Raises
    ------
    DemoError
        When not all of selfattn's are, after the page.
    ModuleNotFoundError
        When rich, or what reads the weights of MiniLM, is not installed.
    """
    from . import bits, show

    console = console or show.terminal()
    model, is_real = bits.load()
    tokens = model.tokens(bits.SENTENCES)
    found = [bits.measure(*way, tokens) for way in bits.ways(model).items()]
    show.bits(console, found, is_real)
    if not found[0].keeps_all:
        raise DemoError("not every embedding has the same bits alone and in a batch")


def _walk(console, sentence: str | None, word: str | None):
    """Show the steps; return them, and which word to look at."""
    from . import example, show_walk
    from .walk import walk

    if sentence is None:
        start = example.embedded()
    else:
        sentence = clean(sentence)
        words = [part.text for part in split(sentence)]
        if not words:
            raise DemoError("the sentence has no words")
        if len(words) > _MOST_WORDS:
            raise DemoError(f"the demo takes up to {_MOST_WORDS} words, got {len(words)}")
        start = example.hashed(sentence, words)
    focus = None if word is None else positions(start.words, word)[0]
    result = walk(start)
    show_walk.show(console, result, focus, is_hashed=sentence is not None)
    return result, focus
