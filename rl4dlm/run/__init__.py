"""One run: its folder, what is checked before it starts, what it costs, what it reports."""
