"""A bench as one self-contained page, with its tables and figures as files, from files alone."""

from unirl_env.bench.page.formats import as_rich
from unirl_env.bench.page.tables import table
from unirl_env.bench.page.write import write_bench

__all__ = ["as_rich", "table", "write_bench"]
