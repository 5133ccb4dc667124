"""Every speed that the documentation names comes from a script here."""

from loraplex.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()  # as the `loraplex` command does, before a script imports torch
