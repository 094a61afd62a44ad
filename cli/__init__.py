"""The command line, installed as `rfcalc_cli`: one file per command."""
