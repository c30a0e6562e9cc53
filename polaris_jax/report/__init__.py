"""Every figure of a run as PNG, one self-contained report.html, and the run's closing table."""

from polaris_jax.report.report import make_report
from polaris_jax.report.summary import ReportSummary, StageRow

__all__ = ["ReportSummary", "StageRow", "make_report"]
