"""${message}

Revision: ${up_revision}, after ${down_revision or "nothing" | comma,n}, ${create_date}
Additive first: what the running version still reads is dropped one version later.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: Sequence[str] | None = ${repr(branch_labels)}
depends_on: Sequence[str] | None = ${repr(depends_on)}

# A migration that waits for a lock makes everybody behind it wait too: better that it fails and is tried again.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "10min"


def upgrade() -> None:
    op.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    op.execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    op.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    op.execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")
    ${downgrades if downgrades else "pass"}
