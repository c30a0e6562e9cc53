"""Scores of sampled responses: avg@k, pass@k, by length, by budget; and the benchmark files."""

from polaris_jax.evaluate.benchmarks import BENCHMARKS, Benchmark, is_benchmark, read_benchmark
from polaris_jax.evaluate.budget_curve import BudgetPoint, budget_curve, default_budgets
from polaris_jax.evaluate.estimators import Estimate, avg_at_k, pass_at_k
from polaris_jax.evaluate.length_groups import LengthGroup, length_groups

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
