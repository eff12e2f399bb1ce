"""Floor 4: claiming requests, fetching their pictures, and driving one runner per device."""
