from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from ._args.sequences import Sequences

_T = TypeVar("_T")

class AttentionProblem:
    query: np.ndarray
    arrays: tuple[np.ndarray, ...]
    out_shape: tuple[int, ...]
    scores_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    queries: Sequences | None
    keys: Sequences | None
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
    def set_sequences(self, queries: Sequences, keys: Sequences) -> None: ...
    def set_mask(self, mask: np.ndarray) -> None: ...
    def set_bias(self, bias: np.ndarray) -> None: ...
    def set_dropout_p(self, p: float) -> None: ...
    def set_causal(self, is_causal: bool) -> None: ...
    def set_scale(self, scale: float) -> None: ...
    def set_query_offset(self, query_offset: int | np.ndarray) -> None: ...
    def set_query_lengths(self, query_lengths: np.ndarray | None) -> None: ...
    def set_kv_starts(self, kv_starts: np.ndarray | None) -> None: ...
    def set_kv_lengths(self, kv_lengths: np.ndarray | None) -> None: ...
    def set_window(self, sides: tuple[int, int]) -> None: ...
    def set_softcap(self, softcap: float) -> None: ...
    def set_alibi_slopes(self, slopes: np.ndarray) -> None: ...
    def set_sinks(self, sinks: np.ndarray) -> None: ...
    def set_segments(self, ids: tuple[np.ndarray, np.ndarray]) -> None: ...
    def set_dropout_seed(self, seed: int) -> None: ...
    def attend(self, out: np.ndarray, lse: np.ndarray | None, num_threads: int) -> None: ...
    def set_pages(
        self, table: np.ndarray, seqlen_k: int, key: np.ndarray, value: np.ndarray
    ) -> None: ...
    def set_scales(self, key: np.ndarray, value: np.ndarray, are_pools: bool) -> None: ...
    def set_place(self, first_query: int, first_key: int) -> None: ...
    def update(self, state: np.ndarray, is_natural: bool, num_threads: int) -> bool: ...
    def attend_to_state(
        self,
        state: np.ndarray,
        is_natural: bool,
        out: np.ndarray,
        lse: np.ndarray | None,
        num_threads: int,
    ) -> None: ...
    def differentiate(
        self,
        grad_out: np.ndarray,
        out: np.ndarray,
        lse: np.ndarray,
        gradients: tuple[np.ndarray | None, ...],
        num_threads: int,
        grad_lse: np.ndarray | None = None,
    ) -> None: ...
    def differentiate_rows(
        self,
        given: tuple[np.ndarray | None, ...],
        query: np.ndarray,
        goes_on: bool,
        is_partial: bool,
        mask: np.ndarray | None,
        bias: np.ndarray | None,
        num_threads: int,
    ) -> None: ...
    def differentiate_keys(
        self,
        given: tuple[np.ndarray | None, ...],
        key: np.ndarray,
        value: np.ndarray,
        num_threads: int,
    ) -> None: ...
    def differentiate_sinks(
        self, given: tuple[np.ndarray | None, ...], sums: np.ndarray, entry: int
    ) -> None: ...
    def score(self, out: np.ndarray, num_threads: int) -> None: ...
    def weigh(self, out: np.ndarray, num_threads: int) -> None: ...

def fast_problem(
    query: object, key: object, value: object, has_value: bool, is_grouped: bool = False
) -> AttentionProblem | None: ...
def fast_path(
    query: object,
    key: object,
    value: object,
    out: object,
    values: tuple[object, ...],
    defaults: tuple[object, ...],
    num_threads: int | None,
    get_num_threads: Callable[[], int],
) -> np.ndarray | None: ...
def nondefault(
    names: tuple[str, ...], defaults: tuple[object, ...], values: tuple[object, ...]
) -> dict[str, object]: ...
def know_bfloat16(number: int) -> None: ...
def dlpack_dtype(capsule: object) -> tuple[int, int]: ...
def dlpack_uint16(capsule: object) -> np.ndarray: ...

class TensorMemory:
    def __init__(self, tensor_type: type, is_lazy: Callable[[Any], bool]) -> None: ...
    def array(self, x: object) -> np.ndarray | None: ...
    def are_alike(self, *tensors: object) -> bool: ...
    # Of whatever library's: a tensor.
    def new(self, like: object, shape: Sequence[int]) -> Any: ...

class TensorCalls(TensorMemory):
    def __init__(
        self,
        tensor_type: type,
        is_lazy: Callable[[Any], bool],
        empty_like: Callable[[Any], Any],
    ) -> None: ...
    def problem(
        self, query: object, key: object, value: object, is_grouped: bool
    ) -> AttentionProblem | None: ...
    def attention(
        self,
        query: object,
        key: object,
        value: object,
        is_grouped: bool,
        is_causal: bool,
        with_lse: bool,
        num_threads: int,
    ) -> tuple[Any, Any] | None: ...
    def attention_gradients(
        self,
        query: object,
        key: object,
        value: object,
        is_grouped: bool,
        is_causal: bool,
        results: tuple[object, ...],
        num_threads: int,
    ) -> tuple[Any, Any, Any] | None: ...
    def project_gradients(
        self,
        grad_out: object,
        x: object,
        weight: object,
        wanted: tuple[bool, ...],
        num_threads: int,
    ) -> tuple[Any, Any, Any] | None: ...
    def project(
        self, x: object, weight: object, bias: object, get_num_threads: Callable[[], int]
    ) -> Any: ...
    def attend(
        self, problem: AttentionProblem, out: object, with_lse: bool, num_threads: int
    ) -> Any: ...
    def differentiate(
        self,
        problem: AttentionProblem,
        grad_out: object,
        out: object,
        lse: object,
        grad_lse: object,
        gradients: tuple[object, ...],
        num_threads: int,
    ) -> bool: ...

def broadcasts(x: np.ndarray, shape: tuple[int, ...]) -> bool: ...
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
    outs: tuple[np.ndarray, ...],
    lses: tuple[np.ndarray, ...],
    out: np.ndarray,
    lse: np.ndarray,
    num_threads: int,
) -> None: ...
def merge_backward(
    grad_out: np.ndarray,
    grad_lse: np.ndarray | None,
    outs: tuple[np.ndarray, ...],
    lses: tuple[np.ndarray, ...],
    grad_outs: tuple[np.ndarray, ...],
    grad_lses: tuple[np.ndarray, ...],
    num_threads: int,
) -> None: ...
def rope(
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    out: np.ndarray,
    pairing: tuple[int, int, int],
    seconds: tuple[int, int],
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
def in_default_environment(compute: Callable[..., _T], *arguments: object) -> _T: ...
def isas_built() -> list[str]: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def force_isa(name: str) -> bool: ...
def compiler() -> str: ...
def apply(function: str, x: np.ndarray, unit: float = 1) -> np.ndarray: ...
def num_cores() -> int: ...
def peak_flops(is_float64: bool) -> int: ...
def time_peak(is_float64: bool, num_threads: int, steps: int) -> tuple[float, float]: ...
def read_bytes(nbytes: int, num_threads: int) -> int: ...
def time_read(x: np.ndarray, num_threads: int) -> tuple[float, float]: ...

STATE_HEAD: int
SPLIT: int

def questions_of(compute: Callable[[], object]) -> int: ...
def environment(name: str) -> str | None: ...
