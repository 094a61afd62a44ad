"""What a design may cost and must see, what a report says against that, and what would mend it."""
