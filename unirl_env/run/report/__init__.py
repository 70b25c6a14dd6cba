"""A run as one self-contained HTML page: what it reached, how it went, what it draws now."""

from unirl_env.run.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
