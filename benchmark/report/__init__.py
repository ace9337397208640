"""What is said: records, statistics, tables, views and trackers. Nothing here knows what a cell is about."""
