"""Alembic's environment: the ledger's metadata and the connection that `runner` hands over."""

from alembic import context

from gateway.ledger.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    context.configure(
        dialect_name=context.config.get_main_option("dialect") or "postgresql",
        target_metadata=metadata,
        literal_binds=True,
    )
    context.run_migrations()
else:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
