"""Training: one step, the loop around it, schedules and averages."""
