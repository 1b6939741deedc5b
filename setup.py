"""Only the list of packages: everything else is declared in setup.cfg.

The configurations lie beside the package, where a detectron2 user looks for them, and ship inside
it as ``retinanet_plugin.configs``; setup.cfg can find packages or list them, not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["retinanet_plugin", "retinanet_plugin.*"]),
        "retinanet_plugin.configs",
    ],
    package_dir={"retinanet_plugin.configs": "configs"},
)
