"""One module a subcommand; see ``revstep.cli``."""
