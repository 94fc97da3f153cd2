"""What the verbs of the command line do: functions whose parameters are the arguments and options that `hibench.cli` parses."""
