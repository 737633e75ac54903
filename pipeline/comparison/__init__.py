"""Trial folders to comparative tables and figures."""
