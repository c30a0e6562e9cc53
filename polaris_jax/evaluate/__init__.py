"""Scores of sampled responses: avg@k, pass@k, by length, by budget; and the benchmark files."""

from polaris_jax.evaluate.benchmarks import BENCHMARKS, Benchmark, is_benchmark, read_benchmark
from polaris_jax.evaluate.estimators import (
    BudgetPoint,
    Estimate,
    LengthGroup,
    avg_at_k,
    budget_curve,
    default_budgets,
    length_groups,
    pass_at_k,
)

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BudgetPoint",
    "Estimate",
    "LengthGroup",
    "avg_at_k",
    "budget_curve",
    "default_budgets",
    "is_benchmark",
    "length_groups",
    "pass_at_k",
    "read_benchmark",
]
