"""How the ranks of a prefill group share attention, one method to a file."""
