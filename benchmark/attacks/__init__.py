"""Attacks: what tries to bring an erased concept back, and the controls that tell recovery from luck."""
