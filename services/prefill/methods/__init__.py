"""The methods by which the ranks of a prefill group share attention, one to a file."""
