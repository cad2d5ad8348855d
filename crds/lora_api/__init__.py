"""Data formats that the parts of this project exchange.

The operator, both stages, the local runner and the command line share only these modules:

- `job`, `status`: the `LoraTrainingJob` resource.
- `profile`: the administrator's profiles.
- `stages`, `exits`, `reasons`: the configuration file of a stage, its exit code and its result.
- `keys`: object keys in the output bucket.
- `manifest`: the files that mark a result as complete.

The package depends on pydantic only, and imports none of the other packages.
"""

GROUP = "lora-training.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LoraTrainingJob"
PLURAL = "loratrainingjobs"

__version__ = "0.1.0"
