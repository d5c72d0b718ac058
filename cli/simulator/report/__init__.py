"""Reports of runs: tables for a terminal, JSON, plots, and a page for a browser."""
