"""The gradient of the real network against the report: a second opinion that shares no rule with the first."""
