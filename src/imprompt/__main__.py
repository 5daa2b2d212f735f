"""`python -m imprompt` is `imprompt`."""

from imprompt.cli.main import main

if __name__ == "__main__":
    main()
