"""Training, step by step, and the measure of what was learned.

Step t trains on sentences drawn by (seed, t), at a rate that falls to 0: a run that is resumed from
what `Trainer.state_dict` gave goes on bit for bit. Called by `__init__.py` and the tests.
"""

from __future__ import annotations

import itertools

import numpy as np

from .adam import Adam
from .model import Batch, Model
from .sentences import MADE_UP, REAL, Sentence, sentences

STEPS = 1000
BATCH = 64  # sentences
RATE = 3e-3


class Trainer:
    """A model, its optimiser, and how far of `steps` they have come."""

    def __init__(self, seed: int, steps: int = STEPS, dtype=np.float32) -> None:
        self.seed, self.steps = seed, steps
        self.model = Model(seed, dtype)
        self.optimiser = Adam(self.model.params)

    def step(self) -> float:
        """Train on one more batch; its loss before that."""
        done = self.optimiser.steps
        if done >= self.steps:
            raise ValueError(f"expected a trainer of more steps than {self.steps}, which are done")
        loss, grads = self.model.loss(Batch.of(self.sentences(done)))
        self.optimiser.step(grads, RATE * (1 - done / self.steps))
        return loss

    def sentences(self, step: int) -> list[Sentence]:
        """Those of a step, counted from 0."""
        return _first(BATCH, sentences(np.random.default_rng((self.seed, step)), MADE_UP))

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that a resumed run needs, as copies by name: for `nn.save`."""
        state = {f"model.{name}": x.copy() for name, x in self.model.params.items()}
        return state | {f"adam.{name}": x for name, x in self.optimiser.state_dict().items()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on from where another trainer, of the same seed and steps, stood."""
        for name, x in self.model.params.items():
            x[...] = state[f"model.{name}"]
        prefix = "adam."
        self.optimiser.load_state_dict(
            {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}
        )


def held_out(seed: int, count: int) -> list[Sentence]:
    """Sentences of real nouns, of which training has none."""
    return _first(count, sentences(np.random.default_rng((seed, 2**32)), REAL))


def accuracy(model: Model, test: list[Sentence]) -> float:
    """The part of the sentences where the likeliest place is that of the noun that "it" means."""
    batch = Batch.of(test)
    return float((model.answers(batch) == batch.answer).mean())


def _first(count, endless):
    return list(itertools.islice(endless, count))
