from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

class AttentionProblem:
    query: np.ndarray
    arrays: tuple[np.ndarray, ...]
    out_shape: tuple[int, ...]
    scores_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    batch_shape: tuple[int, ...]
    num_heads_q: int
    def __init__(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray | None,
        batch_shape: tuple[int, ...],
        heads_q: int,
        heads_kv: int,
    ) -> None: ...
    def set_scores(self, scale: float, softcap: float) -> None: ...
    def set_ranges(
        self, query_offset: int | np.ndarray, kv_lengths: np.ndarray | None, left: int, right: int
    ) -> None: ...
    def set_sequences(
        self, cu_seqlens_q: np.ndarray, cu_seqlens_k: np.ndarray, longest_q: int, longest_k: int
    ) -> None: ...
    def set_mask(self, mask: np.ndarray) -> None: ...
    def set_segments(self, of_query: np.ndarray, of_key: np.ndarray) -> None: ...
    def set_alibi(self, slopes: np.ndarray) -> None: ...
    def set_sinks(self, sinks: np.ndarray) -> None: ...
    def set_dropout(self, p: float, seed: int) -> None: ...
    def attend(self, out: np.ndarray, lse: np.ndarray | None, num_threads: int) -> None: ...
    def differentiate(
        self,
        grad_out: np.ndarray,
        out: np.ndarray,
        lse: np.ndarray,
        gradients: tuple[np.ndarray | None, ...],
        num_threads: int,
    ) -> None: ...
    def score(self, out: np.ndarray, num_threads: int) -> None: ...
    def weigh(self, out: np.ndarray, num_threads: int) -> None: ...

def plain_problem(query: object, key: object, value: object) -> AttentionProblem | None: ...
def attend_plainly(
    query: object,
    key: object,
    value: object,
    out: object,
    options: tuple[object, ...],
    defaults: tuple[object, ...],
    num_threads: int | None,
    get_num_threads: Callable[[], int],
) -> np.ndarray | None: ...
def dlpack_dtype(capsule: object) -> tuple[int, int]: ...
def may_overlap(out: np.ndarray, arrays: Iterable[np.ndarray]) -> bool: ...

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
def merge(
    out_a: np.ndarray,
    lse_a: np.ndarray,
    out_b: np.ndarray,
    lse_b: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    num_threads: int,
) -> None: ...
def turn(
    x: np.ndarray,
    angles: np.ndarray,
    out: np.ndarray,
    pairs: int,
    step: int,
    first: int,
    second: int,
    num_threads: int,
) -> None: ...
def project(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, num_threads: int
) -> None: ...
def project_backward(
    grad_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    grad_x: np.ndarray | None,
    grad_weight: np.ndarray | None,
    grad_bias: np.ndarray | None,
    num_threads: int,
) -> None: ...
def in_default_environment(compute: Callable[..., Any], *arguments: object) -> Any: ...
def isas_built() -> list[str]: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def force_isa(name: str) -> bool: ...
def compiler() -> str: ...
def apply(function: str, x: np.ndarray, unit: float = 1) -> np.ndarray: ...
def num_cores() -> int: ...
def environment(name: str) -> str | None: ...
