"""Requests: submitted, waited for, streamed, read and cancelled."""
