"""What `selfattn demo --train` runs: a small model learns what "it" means, from random weights.

    sentences.py -> model.py -> training.py (adam.py) -> show.py, picture.py

    sentences.py  what it learns from, and what it is tested on     adam.py     the optimiser
    model.py      embedding, positions, attention, read-out         show.py     the terminal
    training.py   a step, the accuracy, a run that can go on        picture.py  the PNG

Called by `cli.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .model import Batch, Model
from .sentences import Sentence, example
from .training import BATCH, Trainer, accuracy, held_out

__all__ = ["run"]

_TESTED = 2000  # sentences
_ADJECTIVES = ("tired", "wide")


def run(console=None, *, seed: int = 0, steps: int | None = None, png: str = "attention.png"):
    """Train the model, and show what it knew before and what it knows after.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to show it; the terminal unless given.
    seed : int
        Of the first weights and of the sentences.
    steps : int, optional
        How many batches to train on; as many as it takes unless given.
    png : str
        Where to write the picture of the attention of "it", before and after.

    Raises
    ------
    ModuleNotFoundError
        When rich or matplotlib is not installed.
    OSError
        When the picture cannot be written.
    """
    from . import picture, show

    picture.check(Path(png))  # now, not after a minute
    console = console or show.terminal()
    trainer = Trainer(seed) if steps is None else Trainer(seed, steps)
    test = held_out(seed, _TESTED)
    looked_at = [example(adjective) for adjective in _ADJECTIVES]
    show.task(console, trainer, test)

    before = accuracy(trainer.model, test), look(trainer.model, looked_at)
    start = time.perf_counter()
    with show.progress(console, trainer.steps) as advance:
        for _ in range(trainer.steps):
            advance(trainer.step())
    seconds = time.perf_counter() - start
    after = accuracy(trainer.model, test), look(trainer.model, looked_at)

    show.attention(console, looked_at, before[1], after[1])
    picture.draw(Path(png), looked_at, before[1], after[1])
    sentences = trainer.steps * BATCH
    show.result(console, before[0], after[0], len(test), seconds, sentences, png)


def look(model: Model, sentences: list[Sentence]) -> list[tuple[np.ndarray, int]]:
    """How "it" attends over the words of each sentence, and which word the model answers."""
    looks = []
    for sentence in sentences:
        batch = Batch.of([sentence])
        looks.append((model.maps(batch)[0, sentence.it], int(model.answers(batch)[0])))
    return looks
