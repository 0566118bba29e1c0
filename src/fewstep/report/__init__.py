"""The report: one page with the results of other commands. It needs no network."""

from .page import write_report as write_report
