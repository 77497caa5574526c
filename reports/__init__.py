"""Reports: the terminal, Markdown and HTML faces of a result."""
