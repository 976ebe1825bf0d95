"""Run by alembic, with the connection that `Store.open` holds."""

from alembic import context

from kleash.labels.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
