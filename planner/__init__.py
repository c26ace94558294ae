"""planner: a household meal-planning model, from event log to promoted version."""
