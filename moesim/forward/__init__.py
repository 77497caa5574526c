"""One forward step of a whole model: what runs, how long it takes, and how sure that is."""
