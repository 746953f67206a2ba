"""Metrics: functions of pictures, and of their references where they need one."""
