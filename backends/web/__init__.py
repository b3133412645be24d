"""The web, for models: searches at a provider of the settings, and pages cut to what there is to read."""
