"""The package's exceptions.

    MettaRayError
    ├── ConfigError (ValueError)        a setting that cannot work; raised before anything starts
    ├── EnvironmentFault (RuntimeError) an environment, or the process that runs it, failed
    │   └── EngineFault                 the engine of one environment failed; the environment is rebuilt
    ├── UsageError (RuntimeError)       functions called in an order that makes no sense (recv, recv)
    ├── CheckpointError (RuntimeError)  a checkpoint or policy file is missing, damaged or not of this format
    │   └── PolicyMissingError (ValueError)  no policy matches what was asked for
    ├── PolicyMismatchError (ValueError) a policy does not fit the environment or the weights
    ├── RunDirectoryInUse (RuntimeError) another live process writes to this run directory
    ├── StatsDBError (RuntimeError)     an evaluation database is damaged, of another version, or none
    ├── JournalError (RuntimeError)     the journal of a run is damaged, or cannot be written
    ├── StateStoreError (RuntimeError)  the store of run records is damaged, busy, or of another version
    ├── ObjectStoreError (OSError)      an object store does not answer, or refuses; trying again may help
    ├── LedgerError (RuntimeError)      an event that cannot have happened to the tickets of this run
    ├── RunUnknownError (LookupError)   no run of that name, neither in the store nor in the cluster
    ├── RunUnreachableError (ConnectionError) the run's cluster or coordinator does not answer
    ├── RunFailed (RuntimeError)        a run of the service cannot go on
    │   └── LearnersLost                no learner and no committed state is left; a checkpoint may help
    └── TrainingDiverged (RuntimeError) several updates in a row were not finite

Every message names the thing, its value and the remedy.
"""


class MettaRayError(Exception):
    """Base of all errors this package raises on purpose."""


class ConfigError(MettaRayError, ValueError):
    """A setting that cannot work."""


class EnvironmentFault(MettaRayError, RuntimeError):  # noqa: N818 - reads as the fact it states
    """An environment, or the process that runs it, failed."""


class EngineFault(EnvironmentFault):
    """The engine of one environment failed; its world can no longer be stepped."""


class UsageError(MettaRayError, RuntimeError):
    """Functions were called in an order that makes no sense."""


class CheckpointError(MettaRayError, RuntimeError):
    """A checkpoint or policy file is missing, damaged or not of this format."""


class PolicyMissingError(CheckpointError, ValueError):
    """No policy matches what was asked for."""


class PolicyMismatchError(MettaRayError, ValueError):
    """A policy does not fit the environment or the weights it is given."""


class RunDirectoryInUse(MettaRayError, RuntimeError):  # noqa: N818 - reads as the fact it states
    """Another live process writes to this run directory."""


class StatsDBError(MettaRayError, RuntimeError):
    """A statistics file is damaged, of another version, or no statistics file."""


class JournalError(MettaRayError, RuntimeError):
    """The journal of a run is damaged, or cannot be written."""


class StateStoreError(MettaRayError, RuntimeError):
    """The store of run records is damaged, busy, or of another version."""


class ObjectStoreError(MettaRayError, OSError):
    """An object store does not answer, or refuses."""


class LedgerError(MettaRayError, RuntimeError):
    """An event that cannot have happened to the tickets of this run."""


class RunUnknownError(MettaRayError, LookupError):
    """No run of that name."""


class RunUnreachableError(MettaRayError, ConnectionError):
    """A run's cluster or coordinator does not answer."""


class RunFailed(MettaRayError, RuntimeError):  # noqa: N818 - reads as the fact it states
    """A run of the service cannot go on."""


class LearnersLost(RunFailed):
    """No learner and no committed state is left."""


class TrainingDiverged(MettaRayError, RuntimeError):  # noqa: N818 - reads as the fact it states
    """Several updates in a row were not finite."""
