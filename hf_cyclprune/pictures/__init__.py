"""Pictures of runs, for a card, a README or a terminal's user."""
