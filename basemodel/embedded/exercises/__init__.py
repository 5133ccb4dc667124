"""Synthetic chat exercises that teach the embedded base to copy, pick and reformat spans of its prompt.

They hold no question with an SQL query, no log line with its JSON and no schedule with its cron expression: those are
the demo tasks (`loraplex.demo`), which adapters must learn.
"""

from basemodel.embedded.exercises.exercise import Conversation, Exercise, Turn, converse

__all__ = ["Conversation", "Exercise", "Turn", "converse"]
