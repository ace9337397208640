"""Reports: records, statistics, tables, views and trackers. They work for any kind of cell, not only for images."""
