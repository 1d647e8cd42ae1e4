"""What `selfattn info` prints: all that the report of a bug should say about where it was met.

`report()` is `show_config("dicts")` and, beside it, the machine, the system, NumPy's own products,
what the environment sets, and what is installed that selfattn can work with. No package is imported
for its version. Called by `cli.py`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _config, _core, _threads

# Of environment variables, those that these begin with.
_PREFIXES = ("SELFATTN_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_")
_PACKAGES = (
    "ml_dtypes", "torch", "transformers", "sentence-transformers", "onnx", "onnxruntime",
    "openvino", "rich", "matplotlib", "safetensors", "tokenizers", "threadpoolctl",
)  # fmt: skip


def report() -> dict[str, Any]:
    """The facts by name, in the order to be read: texts, numbers, lists or dicts of them."""
    config = _config.show_config("dicts")
    assert config is not None
    return {
        **config,
        "cpu": cpu_name(),
        "cores": _core.num_cores() or os.cpu_count(),
        "cores_online": os.cpu_count(),
        "cpu_quota": _quota(),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "blas": _blas(),
        "location": os.path.dirname(os.path.abspath(__file__)),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)
        },
        "packages": dict(_versions()),
    }


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts, one a line, to be read."""
    for name, fact in facts.items():
        yield f"{name + ':':<14}{_shown(fact)}"


def _shown(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name}={value}" for name, value in fact.items()) or "none"
    if isinstance(fact, list):
        return ", ".join(map(str, fact))
    return "none" if fact is None else str(fact)


def cpu_name() -> str:
    """The processor's own name and numbers, where the system tells; else the family of it."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", errors="replace") as file:
        for line in file:
            name, _, fact = line.partition(":")
            facts.setdefault(name.strip(), fact.strip())  # of the first core
    named = (facts[name] for name in ("model name", "Model", "cpu model", "uarch") if name in facts)
    name = next(named, platform.processor() or platform.machine())
    numbers = {
        short: facts[long]
        for short, long in (
            ("family", "cpu family"),
            ("model", "model"),
            ("stepping", "stepping"),
            ("implementer", "CPU implementer"),
            ("part", "CPU part"),
        )
        if long in facts
    }
    return f"{name} ({', '.join(' '.join(pair) for pair in numbers.items())})" if numbers else name


def _quota() -> float | None:
    """CPUs' worth of time that the cgroup allows; None if it is not limited, or not known."""
    quota = _threads._quota()
    return quota if math.isfinite(quota) else None


def _blas() -> str:
    """What NumPy multiplies matrices by."""
    try:
        found = np.show_config("dicts")["Build Dependencies"]["blas"]
        return f"{found['name']} {found['version']}"
    except (KeyError, TypeError):  # the form is NumPy's, and may change
        return "unknown"


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
