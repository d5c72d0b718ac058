"""Tokenising, detokenising, and chat templates."""
