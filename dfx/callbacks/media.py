"""Names of the files that a run writes of its excerpts, also for those that read them without torch."""

SIDES = ("input", "output", "target")
PARAMETERS = "parameters.csv"
ABOUT = "about.json"
AUTOMATION = "automation.csv"
SPECTROGRAMS = "spectrograms.png"
AUTOMATION_IMAGE = "automation.png"
