"""The main job: teach the demo model a domain, draw in it, and measure that."""
