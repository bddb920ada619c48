"""The settings of a run: the schema of presets, the code that loads presets, and the presets themselves."""
