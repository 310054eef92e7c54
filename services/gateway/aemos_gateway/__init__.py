"""The protocol edge: devices and users come in here by HTTP, MQTT and CoAP, and nothing is kept here."""
