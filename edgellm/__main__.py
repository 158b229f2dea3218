"""`python -m edgellm` is the `edgellm` command."""

from edgellm.cli import main

if __name__ == "__main__":
    main()
