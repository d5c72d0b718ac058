"""The `spsctl` command, and the launcher and supervisor behind it."""
