"""`spsctl bench serve`: puts load on a server, and measures what its clients see."""
