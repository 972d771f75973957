"""The command `forkpoint`: what a terminal offers of the public interface."""
