"""Adam: Kingma and Ba, "Adam: A method for stochastic optimization" (2015), algorithm 1.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g²
    p -= rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Called by `training.py`.
"""

from __future__ import annotations

import math

import numpy as np


class Adam:
    """Moves arrays, in place, against their gradients.

    Parameters
    ----------
    params : dict of str to array
        Written by `step`.
    """

    def __init__(self, params: dict[str, np.ndarray]) -> None:
        self.params = params
        self.betas, self.eps = (0.9, 0.999), 1e-8
        self.steps = 0
        self.first = {name: np.zeros_like(p) for name, p in params.items()}
        self.second = {name: np.zeros_like(p) for name, p in params.items()}

    def step(self, grads: dict[str, np.ndarray], rate: float) -> None:
        """One step against gradients of the same names."""
        self.steps += 1
        b1, b2 = self.betas
        unbias = math.sqrt(1 - b2**self.steps)
        scale = rate * unbias / (1 - b1**self.steps)
        for name, p in self.params.items():
            g, m, v = grads[name], self.first[name], self.second[name]
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p -= scale * m / (np.sqrt(v) + self.eps * unbias)

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that a resumed run needs, as arrays by name."""
        state = {"steps": np.array(self.steps)}
        for name in self.params:
            state[f"first.{name}"] = self.first[name].copy()
            state[f"second.{name}"] = self.second[name].copy()
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on from where another stood."""
        self.steps = int(state["steps"])
        for name in self.params:
            self.first[name][...] = state[f"first.{name}"]
            self.second[name][...] = state[f"second.{name}"]
