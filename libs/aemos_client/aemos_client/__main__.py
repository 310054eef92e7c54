"""`python -m aemos_client`: the `aemos` command."""

from aemos_client.cli import main

main()
