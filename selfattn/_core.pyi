import numpy as np

class AttentionProblem:
    query: np.ndarray
    arrays: tuple[np.ndarray, ...]
    out_shape: tuple[int, ...]
    scores_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    def __init__(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray | None,
        batch_shape: tuple[int, ...],
        heads_q: int,
        heads_kv: int,
        scale: float,
        query_offset: int | np.ndarray,
        kv_lengths: np.ndarray | None,
        left: int,
        right: int,
    ) -> None: ...
    def attend(self, out: np.ndarray, lse: np.ndarray | None, num_threads: int) -> None: ...
    def score(self, out: np.ndarray, num_threads: int) -> None: ...
    def weigh(self, out: np.ndarray, num_threads: int) -> None: ...

class SumProblem:
    arrays: tuple[np.ndarray, ...]
    out_shape: tuple[int, ...]
    def __init__(
        self,
        weights: np.ndarray,
        value: np.ndarray,
        batch_shape: tuple[int, ...],
        heads_q: int,
        heads_kv: int,
    ) -> None: ...
    def sum(self, out: np.ndarray, num_threads: int) -> None: ...

def softmax(x: np.ndarray, out: np.ndarray, axis: int, num_threads: int) -> None: ...
def isas_built() -> list[str]: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def force_isa(name: str) -> bool: ...
def compiler() -> str: ...
def apply(function: str, x: np.ndarray) -> np.ndarray: ...
