"""From a configuration to a run folder, stage by stage."""
