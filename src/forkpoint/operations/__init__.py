"""The one logic of each call, without a backend."""
