"""``python -m retinanet_plugin COMMAND``: the ``retinanet`` command."""

from .cli import main

if __name__ == "__main__":
    main()
