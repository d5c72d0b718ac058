"""`spsctl bench`: the loss of quality by sparse attention."""
