"""The scorecard: every method of this project, measured on the same seeds against a control.

`minidiff score` prints it; `bench` draws, `measures` and `table` grade and write, the other files
hold the rows. `python -m minidiff.scoring.calibrate` chose the settings, on other seeds.
"""
