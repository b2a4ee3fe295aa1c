"""The contract of tasks, models and learners, and what estimates a meta-gradient."""
