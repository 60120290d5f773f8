"""`python -m pyro_vaes.cli`, the same as the script `pyro-vaes`."""

from . import main

if __name__ == "__main__":
    main()
