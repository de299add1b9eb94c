"""One module a subcommand; see ``revstep._cli``."""
