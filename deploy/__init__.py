"""Where objects are wired: Ray Serve deployments, the embedded mode and the command line."""
