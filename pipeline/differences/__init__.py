"""How two trials differ: settings, code, data, versions, metrics and hypotheses."""
