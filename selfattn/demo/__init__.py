"""What `selfattn demo` runs: self-attention on real numbers, shown step by step.

    no sentence           example.embedded -> walk -> show: every step on "I am a student"
    a sentence, MiniLM    minilm -> heads -> show: the head in which a word attends most sharply
    a sentence, no MiniLM words -> example.hashed -> walk -> show: every step on the user's words
    --bits                bits -> show: sentences whose embedding is the same alone and in a batch

    words.py     sentence -> words            measure.py  time, difference from the truth
    example.py   vectors and fixed weights    minilm.py   the sentence encoder (gelu.py its GELU)
    walk.py      the four steps               heads.py    choice of a head, maps over words
    bits.py      alone and in a batch         torch_minilm.py   the encoder in PyTorch
    show.py      the pages in a terminal      tables.py   their tables and heat maps
    learn/       `selfattn demo --train`: a model that learns

Called by `cli.py`.
"""

from __future__ import annotations

from .words import DemoError, clean, positions, split

__all__ = ["DemoError", "count_bits", "run"]

_MOST_WORDS = 1000  # of the walk, which holds the whole map


def run(sentence: str | None = None, word: str | None = None, console=None) -> None:
    """Run the demo on a sentence, or on the embedded example, and show it.

    Parameters
    ----------
    sentence : str, optional
    word : str, optional
        The word to look at.
    console : rich.console.Console, optional
        Where to show it; the terminal unless given.

    Raises
    ------
    DemoError
        When the sentence or the word cannot be shown.
    ModuleNotFoundError
        When rich, or what reads the weights of MiniLM, is not installed.
    """
    from . import minilm, show

    console = console or show.terminal()
    if sentence is not None and minilm.is_installed():
        from . import heads

        show.head(console, word, heads.sharpest(minilm.MiniLM(), sentence, word))
    else:
        _walk(console, sentence, word)


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


def _walk(console, sentence: str | None, word: str | None) -> None:
    from . import example, show
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
    show.walk(console, walk(start), focus, is_hashed=sentence is not None)
