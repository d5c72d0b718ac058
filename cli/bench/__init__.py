"""`spsctl bench`: what sparse attention costs in quality."""
