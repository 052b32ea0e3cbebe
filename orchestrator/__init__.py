"""The driver: configuration, plan, phases, journal, telemetry and the command line."""
