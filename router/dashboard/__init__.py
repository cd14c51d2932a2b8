"""The built-in page: playground and dashboard, served by the service itself."""
