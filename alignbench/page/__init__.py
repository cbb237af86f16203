"""The report: one HTML file with the verdict, the tables, the charts and the pictures of result files."""
