"""${message}

Expand and contract: this revision must leave the release before it working. Name every constraint.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "raise AssertionError('write me')"}


def downgrade() -> None:
    ${downgrades if downgrades else "raise AssertionError('write me')"}
