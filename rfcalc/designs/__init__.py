"""From a target in words to a `Design`: finding, loading, building without storage."""
