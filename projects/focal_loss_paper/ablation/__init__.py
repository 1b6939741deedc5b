"""The paper's tables repeated: planned, run in processes of their own, and told beside its numbers.

:mod:`.planning` makes the :mod:`.plan` of what each row trains, :mod:`.runs` runs it,
:mod:`.results` reads what it left, :mod:`.report` and :mod:`.plot` show it.
"""

from .command import ablate, default_output, list_tables
from .plan import Options
from .planning import make_plans

__all__ = ["Options", "ablate", "default_output", "list_tables", "make_plans"]
