"""What a run is: the schema of presets, their loading, and the presets themselves."""
