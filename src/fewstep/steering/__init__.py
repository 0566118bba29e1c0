"""Proxy-tuning: small models steer a large one at decoding time."""
