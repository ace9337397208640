"""The site: records and documents as one folder of static pages. `overpaint site` writes it."""
