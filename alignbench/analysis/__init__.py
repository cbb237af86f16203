"""From result files to tables and pictures. Imports no torch: comparing files loads no model."""
