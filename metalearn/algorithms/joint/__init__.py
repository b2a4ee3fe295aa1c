"""One model for all tasks, which a second level trains: it does not adapt at test."""

__all__: list[str] = []
