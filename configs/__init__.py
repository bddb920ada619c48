"""What a run is: the schema of presets, how presets are loaded, and the presets themselves."""
