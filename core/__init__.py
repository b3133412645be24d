"""What every part may use: settings, errors, what the application holds."""
