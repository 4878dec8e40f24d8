"""`python -m sorter` is the `sorter` command."""

from sorter.cli.main import main

if __name__ == "__main__":
    main()
