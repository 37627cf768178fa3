"""``python -m tunescope``, which torchrun and accelerate launch start, too."""

from tunescope.cli.main import main

if __name__ == "__main__":
    main()
