"""The joining service: machines join the running cluster with a code, and get its model."""
