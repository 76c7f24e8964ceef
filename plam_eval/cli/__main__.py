"""`python -m plam_eval.cli`: for launchers that start a module, such as torchrun."""

from plam_eval.cli.app import main

if __name__ == "__main__":
    main()
