"""The report: one page that shows what commands left in their folders, and needs no network."""

from .page import write_report as write_report
