"""Android phones: adb, and the state of a phone."""
